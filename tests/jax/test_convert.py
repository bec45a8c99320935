"""Between orbax and draft directories, both ways: every bit, on every mesh, and nothing that is not named."""

import _thread
import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as v1
import pytest
from flax import nnx
from flax.nnx.traversals import flatten_mapping
from pydantic import ValidationError
from safetensors.numpy import load_file, save_file

from jax_specexit.convert import convert
from jax_specexit.evaluation.evaluate import evaluate
from jax_specexit.model.draft import Draft
from jax_specexit.sharding import make_mesh
from jax_specexit.stored import open_checkpoint, write_checkpoint
from jax_specexit.training.run import Start, read_start, save_start
from specexit.config import ConfigError
from specexit.data.overlap import write_prompts
from specexit.drafts.config import DraftConfig, DraftError
from specexit.drafts.directory import read_config, read_draft
from specexit.drafts.export import export
from specexit.drafts.inspect import describe
from specexit.drafts.names import SIGNAL_HEAD, tensor_names
from specexit.drafts.policy import (
    Certificate,
    Fingerprints,
    OperatingPoint,
    PolicyError,
    PolicyFile,
    Selection,
    Serving,
    read_policy,
    write_policy,
)
from specexit.drafts.published import import_draft
from specexit.drafts.tensors import FLOATS, INDEX, WEIGHTS, weights_hash
from specexit.method.decision import Policy
from specexit.schemas.convert import ConvertConfig
from specexit.schemas.evaluate import EvaluateConfig
from specexit.schemas.export import ExportConfig
from specexit.schemas.published import ImportConfig
from specexit.schemas.target import load_target_config, save_target
from specexit.schemas.train import MeshConfig
from tests.jax.devices import simulated
from tests.shared.published import tensors_of, write_published, write_target

ROOT = Path(__file__).parents[2]
TINY = {"hidden_size": 192, "target_hidden_size": 192, "vocab_size": 640, "draft_vocab_size": 128, "head_dim": 16}
GEOMETRIES = {
    "plain": {},
    "everything": {"attention_bias": True, "fc_norm": True, "own_embeddings": True, "norm_output": True}
    | {"draft_vocab_size": 640},
    "qwen3": {"model_type": "qwen3", "norm_before_fc": True},
}


@pytest.fixture
def write_run(tmp_path, write_random_draft):
    """A run folder with a checkpoint of random parameters that no two of are alike."""

    def write(source: str | None, **shape: object) -> Path:
        config = read_config(write_random_draft(tmp_path / f"shape-{source}", source, **(TINY | shape)))
        block = config.specexit and config.specexit.model_copy(update={"target": "tiny-reasoner"})
        config = config.model_copy(update={"specexit": block})
        state = flatten_mapping(nnx.to_pure_dict(nnx.state(Draft(config, rngs=nnx.Rngs(0)))))
        rng = np.random.default_rng(0)
        values = {"/".join(key): rng.normal(size=leaf.shape).astype(np.float32) for key, leaf in state.items()}
        run = tmp_path / f"run-{source}"
        readers = {path: (lambda value=value: value) for path, value in values.items()}
        write_checkpoint(run, readers, {path: v.shape for path, v in values.items()}, make_mesh(MeshConfig()))
        vocab = np.sort(rng.choice(640, config.draft_vocab_size, replace=False))
        save_start(run, Start(config, vocab, (0.5, 4.0, 64.0)))
        save_target(run, load_target_config("tiny-reasoner"))
        return run

    return write


def parameters(run: Path) -> dict[str, np.ndarray]:
    with open_checkpoint(run) as checkpoint:
        return {path: checkpoint.read(path) for path in checkpoint.shapes}


@pytest.mark.parametrize(("source", "geometry"), [("draft", "plain"), ("fc", "plain"), ("draft", "everything")])
def test_orbax_to_directory_to_orbax_is_equal_to_the_bit(source, geometry, tmp_path, write_run):
    run = write_run(source, **GEOMETRIES[geometry])
    convert(ConvertConfig(run=run, out=tmp_path / "draft"))
    convert(ConvertConfig(draft=tmp_path / "draft", out=tmp_path / "again"))
    before, after = parameters(run), parameters(tmp_path / "again")
    assert before.keys() == after.keys()
    for path, value in before.items():
        assert after[path].dtype == value.dtype
        np.testing.assert_array_equal(after[path], value, err_msg=path)
    np.testing.assert_array_equal(read_start(tmp_path / "again").vocab, read_start(run).vocab)
    there, back = (json.loads((tmp_path / name / "convert.json").read_text()) for name in ("draft", "again"))
    assert there["parameters_blake3"] == back["parameters_blake3"]
    assert there["weights_blake3"] == back["weights_blake3"] == weights_hash(tmp_path / "draft")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("geometry", ["plain", "qwen3"])
def test_directory_to_orbax_to_directory_is_equal_to_the_byte(dtype, geometry, tmp_path, write_run):
    run = write_run("draft", **GEOMETRIES[geometry])
    convert(ConvertConfig(run=run, out=tmp_path / "draft", dtype=dtype))
    assert read_config(tmp_path / "draft").torch_dtype == dtype
    convert(ConvertConfig(draft=tmp_path / "draft", out=tmp_path / "run"))
    convert(ConvertConfig(run=tmp_path / "run", out=tmp_path / "again", dtype=dtype))
    for file in (WEIGHTS, "config.json"):
        assert (tmp_path / "draft" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_operating_points_come_back_with_their_certificates(tmp_path, write_run):
    convert(ConvertConfig(run=write_run("draft"), out=tmp_path / "draft"))
    certificate = Certificate(
        risk="accuracy_lost", epsilon=0.01, delta=0.1, n=800, errors=3.0, bound=0.008, data_sha256="0" * 64
    )
    points = (
        OperatingPoint(name="risk-0.01", policy=Policy(thresholds={"validity": 0.9}), certificate=certificate),
        OperatingPoint(name="loose", policy=Policy(thresholds={"validity": 0.5})),
    )
    written = PolicyFile(
        default="risk-0.01",
        points=points,
        fingerprints=Fingerprints(draft=weights_hash(tmp_path / "draft"), dtype="float32"),
        serving=Serving(mode="shadow", efforts={"low": "loose"}),
        selection=Selection(by="loss", prompts=("0" * 16,)),
    )
    write_policy(tmp_path / "draft", written)
    said = tmp_path / "draft" / "policy.json"
    said.write_text(json.dumps(json.loads(said.read_text())))  # as somebody else writes JSON
    (tmp_path / "draft" / "hold.json").write_text('{"entries": []}')
    convert(ConvertConfig(draft=tmp_path / "draft", out=tmp_path / "run"))
    convert(ConvertConfig(run=tmp_path / "run", out=tmp_path / "again"))
    for file in (WEIGHTS, "config.json", "policy.json", "hold.json"):
        assert (tmp_path / "draft" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    assert read_policy(tmp_path / "again") == written
    (tmp_path / "run" / "policy.json").write_text('{"default": "none"}')
    with pytest.raises(PolicyError, match=r"run/policy\.json: default is 'none', expected the name of a point"):
        convert(ConvertConfig(run=tmp_path / "run", out=tmp_path / "no"))
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("matrices", ["float16", "bfloat16"])
@pytest.mark.parametrize("vectors", ["float16", "float32"])
def test_an_import_comes_back_in_the_types_it_was_published_in(matrices, vectors, tmp_path):
    published = {
        name: tensor if tensor.dtype.kind in "ib" else tensor.astype(FLOATS[vectors if tensor.ndim == 1 else matrices])
        for name, tensor in tensors_of("angelslim").items()
    }
    source = write_published(tmp_path / "published", "angelslim", tensors=published)
    import_draft(ImportConfig(draft=source, target=write_target(tmp_path / "of"), out=tmp_path / "draft"))
    write_prompts(tmp_path / "draft", np.arange(9, dtype=np.uint64))
    convert(ConvertConfig(draft=tmp_path / "draft", out=tmp_path / "run"))
    convert(ConvertConfig(run=tmp_path / "run", out=tmp_path / "again"))
    for file in (WEIGHTS, "config.json", "import.json", "prompts.npy"):
        assert (tmp_path / "draft" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    export(ExportConfig(draft=tmp_path / "again", out=tmp_path / "original", format="original"))
    assert weights_hash(tmp_path / "original") == weights_hash(source)
    convert(ConvertConfig(run=tmp_path / "run", out=tmp_path / "wider", dtype="float32"))
    assert {t.dtype.name for t in read_draft(tmp_path / "wider")[1].values()} == {"float32", "int64", "bool"}
    offered = [describe(tmp_path / name)["exports to"] for name in ("again", "wider")]
    assert ["original" in formats for formats in offered] == [True, False]


def test_what_float16_does_not_hold_is_named(tmp_path, write_run, caplog):
    """A weight beyond it was "NaN or infinity", as if the run was broken; small ones became 0 without a word."""
    convert(ConvertConfig(run=write_run("fc"), out=tmp_path / "draft"))
    tensors = load_file(tmp_path / "draft" / WEIGHTS)
    kept = tensors["fc.weight"].copy()
    for name, value in (("large", 1e6), ("small", 1e-9)):
        tensors["fc.weight"] = np.where(np.arange(kept.size).reshape(kept.shape) < kept.size // 2, value, kept)
        save_file(tensors, tmp_path / "draft" / WEIGHTS, metadata={"format": "pt"})
        convert(ConvertConfig(draft=tmp_path / "draft", out=tmp_path / name))
    with pytest.raises(
        DraftError, match=r"large: tensor fc\.weight holds 1e\+06, beyond float16, .* dtype=bfloat16 or"
    ):
        convert(ConvertConfig(run=tmp_path / "large", out=tmp_path / "half", dtype="float16"))
    assert not (tmp_path / "half").exists()
    assert not caplog.messages
    convert(ConvertConfig(run=tmp_path / "small", out=tmp_path / "half", dtype="float16"))
    assert any("% of a part of fc.weight is 0 in float16; bfloat16 keeps it" in said for said in caplog.messages)


def test_a_directory_in_several_files_comes_back_in_the_same_ones(tmp_path, write_run):
    """Without being told, with its verification: every file but the record of the conversion, byte for byte."""
    convert(ConvertConfig(run=write_run("fc"), out=tmp_path / "draft", max_file_gib=2e-4))
    verified = {"weights_blake3": weights_hash(tmp_path / "draft"), "passed": True, "n": 4}
    (tmp_path / "draft" / "verify.json").write_text(json.dumps(verified))
    convert(ConvertConfig(draft=tmp_path / "draft", out=tmp_path / "run"))
    convert(ConvertConfig(run=tmp_path / "run", out=tmp_path / "again"))
    files = {path.name: path.read_bytes() for path in (tmp_path / "draft").iterdir() if path.name != "convert.json"}
    assert len([name for name in files if name.startswith("model-")]) > 2
    assert {p.name: p.read_bytes() for p in (tmp_path / "again").iterdir() if p.name != "convert.json"} == files
    convert(ConvertConfig(run=tmp_path / "run", out=tmp_path / "one", max_file_gib=5))
    assert (tmp_path / "one" / WEIGHTS).exists()
    convert(ConvertConfig(run=tmp_path / "run", out=tmp_path / "rounded", dtype="bfloat16"))
    places = [json.loads((tmp_path / name / INDEX).read_text())["weight_map"] for name in ("rounded", "draft")]
    assert places[0] == places[1], "of another type, but in the same files"


def test_a_verification_of_other_weights_is_not_handed_on(tmp_path, write_run):
    convert(ConvertConfig(run=write_run("draft"), out=tmp_path / "draft"))
    file = tmp_path / "draft" / "verify.json"
    file.write_text(json.dumps({"weights_blake3": weights_hash(tmp_path / "draft"), "passed": True, "n": 4}))
    convert(ConvertConfig(draft=tmp_path / "draft", out=tmp_path / "run"))
    assert (tmp_path / "run" / "verify.json").read_bytes() == file.read_bytes()
    convert(ConvertConfig(run=tmp_path / "run", out=tmp_path / "rounded", dtype="bfloat16"))
    assert not (tmp_path / "rounded" / "verify.json").exists()
    for i, text in enumerate(('{"weights_blake3": "ab", "passed": true, "n": 4}', "no JSON")):
        file.write_text(text)
        convert(ConvertConfig(draft=tmp_path / "draft", out=tmp_path / str(i)))
        assert not (tmp_path / str(i) / "verify.json").exists()


@pytest.mark.parametrize("files", ["fc.weight", [["fc.weight"]], [[], ["fc.weight"]], 3])
def test_a_split_that_is_none_is_refused(files, tmp_path, write_run):
    run = write_run("draft")
    (run / "convert.json").write_text(json.dumps({"draft": "somewhere", "files": files}))
    with pytest.raises(DraftError, match=r"convert\.json: files is .*, expected lists that name every tensor"):
        convert(ConvertConfig(run=run, out=tmp_path / "draft"))
    assert not (tmp_path / "draft").exists()


@pytest.mark.parametrize("served", FLOATS)
def test_a_run_is_written_in_the_type_that_its_target_is_served_in(served, tmp_path, write_run):
    run = write_run("draft")
    (run / "target.yaml").unlink()
    save_target(run, load_target_config("tiny-reasoner").model_copy(update={"dtype": served}))
    convert(ConvertConfig(run=run, out=tmp_path / "draft"))
    config, tensors = read_draft(tmp_path / "draft")
    assert config.torch_dtype == served
    assert {t.dtype.name for name, t in tensors.items() if name not in ("d2t", "t2d")} == {served}


@pytest.mark.parametrize("types", [["float16"], {"fc.weight": "float16"}, {"x": 1}])
def test_types_that_are_none_are_refused(types, tmp_path, write_run):
    run = write_run("draft")
    (run / "convert.json").write_text(json.dumps({"draft": "somewhere", "types": types}))
    with pytest.raises(DraftError, match=r"convert\.json: types is .*, expected float32, bfloat16, float16 for every"):
        convert(ConvertConfig(run=run, out=tmp_path / "draft"))
    assert not (tmp_path / "draft").exists()


def test_a_target_that_moved_is_said_and_is_what_the_folder_carries(tmp_path, write_run):
    run = write_run("draft")
    (run / "target.yaml").unlink()
    moved = load_target_config("tiny-reasoner").model_copy(update={"path": str(tmp_path / "moved")})
    save_target(tmp_path / "there", moved)
    said = str(tmp_path / "there" / "target.yaml")
    convert(ConvertConfig(run=run, out=tmp_path / "draft", target=said))
    convert(ConvertConfig(draft=tmp_path / "draft", out=tmp_path / "again"))
    for folder in ("draft", "again"):
        assert load_target_config(str(tmp_path / folder / "target.yaml")) == moved
    with pytest.raises(ConfigError, match=r"target=tiny-mixed is 'tiny-mixed', but .* belongs to 'tiny-reasoner'"):
        convert(ConvertConfig(draft=tmp_path / "draft", out=tmp_path / "no", target="tiny-mixed"))
    assert not (tmp_path / "no").exists()


def test_a_plain_draft_goes_both_ways(tmp_path, write_run):
    run = write_run(None)
    convert(ConvertConfig(run=run, out=tmp_path / "draft"))
    config, tensors = read_draft(tmp_path / "draft")
    assert config.specexit is None
    fc = parameters(run)["fc/kernel"].T / np.repeat(np.float32([0.5, 4.0, 64.0]), 192)
    np.testing.assert_array_equal(tensors["fc.weight"], fc)
    convert(ConvertConfig(draft=tmp_path / "draft", out=tmp_path / "again"))
    said = r"again/draft\.json: config\.specexit is null, expected a draft with signals"
    with pytest.raises(ConfigError, match=said):  # which it has none of to judge
        evaluate(EvaluateConfig(run=tmp_path / "again", traces=tmp_path / "traces", out=tmp_path / "out.json"))


@pytest.mark.parametrize("said", [None, "nothing", "platforms", "mesh"])
def test_what_computes_nothing_takes_no_chips(said, tmp_path, write_run, monkeypatch):
    """On one host of a pod it waited for all others, and beside a run it was a traceback; who says more is heard."""
    convert(ConvertConfig(run=write_run("draft"), out=tmp_path / "draft"))
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    if said in ("nothing", "platforms"):
        monkeypatch.setenv("JAX_PLATFORMS", "tpu" if said == "platforms" else "")
    more = {"mesh": MeshConfig()} if said == "mesh" else {}
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", None)  # whose devices this process has already
    try:
        convert(ConvertConfig.model_validate({"draft": tmp_path / "draft", "out": tmp_path / "again"} | more))
        assert jax.config.jax_platforms == ("cpu" if said in (None, "nothing") else None)
    finally:
        jax.config.update("jax_platforms", before)


def geometries() -> Iterator[DraftConfig]:
    """Every combination of what decides which parameters a draft has, as far as there can be such a draft."""
    sizes = {"hidden_size": 8, "target_hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "head_dim": 6, "vocab_size": 9, "target_num_hidden_layers": 2}
    sizes |= {"eagle_aux_hidden_state_layer_ids": (1, 2), "num_aux_hidden_states": 2}
    choices = {
        "model_type": ("llama", "qwen3"),
        "specexit": (None, {"target": "t", "source": "draft"}, {"target": "t", "source": "fc"}),
        "draft_vocab_size": (5, 9),
    }
    choices |= dict.fromkeys(("attention_bias", "own_embeddings", "norm_before_fc", "fc_norm"), (False, True))
    for values in itertools.product(*choices.values()):
        with suppress(ValidationError):
            yield DraftConfig.model_validate(sizes | dict(zip(choices, values, strict=True)))


def test_the_table_of_names_is_bijective_and_complete_for_every_geometry():
    """Same parameters as the Flax draft's, same tensors as the directory's, as many values in both: none is lost."""
    seen = 0
    for config in geometries():
        names, tensors = tensor_names(config), config.tensor_shapes()
        abstract = nnx.eval_shape(lambda c=config: Draft(c, rngs=nnx.Rngs(0)))
        state = {
            "/".join(key): leaf.shape for key, leaf in flatten_mapping(nnx.to_pure_dict(nnx.state(abstract))).items()
        }
        assert names.keys() == state.keys()
        vocabulary = set() if config.whole_vocabulary else {"d2t", "t2d"}
        assert set(names.values()) | vocabulary == tensors.keys()
        rows = defaultdict(list)
        for path, name in names.items():
            rows[name].append(state[path][::-1] if path.endswith("/kernel") else state[path])
        assert sorted(name for name, shapes in rows.items() if len(shapes) > 1) == (
            ["fc.weight"] if config.specexit and config.specexit.source == "fc" else []
        )
        for name, shapes in rows.items():
            assert (sum(shape[0] for shape in shapes), *shapes[0][1:]) == tensors[name], name
        seen += 1
    assert seen == 84, "7 of signals and norms, times 4 of embeddings and vocabulary, times 3 of layers"


def test_the_documentation_lists_every_name_and_no_other():
    page = (ROOT / "docs" / "formats.md").read_text().partition("| parameter | tensor |")[2].partition("\n\n")[0]
    listed = set(re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|", page, re.M))
    names = {item for config in geometries() for item in tensor_names(config).items()}
    told = {(re.sub(r"layer_\d", "layer_I", path), re.sub(r"norm\.\d", "norm.I", name)) for path, name in names}
    assert listed == told - {(SIGNAL_HEAD, "fc.weight")}  # which the line of its other tensor says


def test_shards_are_written_where_asked(tmp_path, write_run):
    run = write_run("draft")
    convert(ConvertConfig(run=run, out=tmp_path / "one"))
    convert(ConvertConfig(run=run, out=tmp_path / "split", max_file_gib=2e-4))
    assert len(list((tmp_path / "split").glob("model-*.safetensors"))) > 1
    for name, tensor in read_draft(tmp_path / "one")[1].items():
        np.testing.assert_array_equal(read_draft(tmp_path / "split")[1][name], tensor)


def test_what_cannot_be_converted_leaves_nothing(tmp_path, write_run):
    run = write_run("draft")
    with pytest.raises(ConfigError, match="no best folder: the run was never evaluated"):
        convert(ConvertConfig(run=run, which="best", out=tmp_path / "draft"))
    start = json.loads((run / "draft.json").read_text())
    start["config"]["attention_bias"] = True
    (run / "draft.json").write_text(json.dumps(start))
    with pytest.raises(DraftError, match=r"parameter k/bias is in only one of its checkpoint and its draft\.json"):
        convert(ConvertConfig(run=run, out=tmp_path / "draft"))
    assert not (tmp_path / "draft").exists()
    with pytest.raises(ValueError, match="expected either run= or draft="):
        ConvertConfig(out=tmp_path / "draft")


@pytest.mark.parametrize("gone", ["state", "state/_METADATA"])
def test_a_checkpoint_that_lacks_parts_is_one_line_that_names_it(gone, tmp_path, write_run):
    run = write_run("draft")
    step = run / "checkpoints" / "0"
    shutil.copytree(step, step.with_name("7"))
    lost = step.with_name("7") / gone
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    expected = r"checkpoints/7: cannot be read as a checkpoint: .*; expected it whole.*removed, and step 0 is taken$"
    with pytest.raises(ConfigError, match=expected) as error:
        convert(ConvertConfig(run=run, out=tmp_path / "draft"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "draft").exists()
    shutil.rmtree(step.with_name("7"))
    convert(ConvertConfig(run=run, out=tmp_path / "draft"))


@pytest.mark.parametrize("gone", ["d", "manifest.ocdbt"])
def test_a_checkpoint_whose_arrays_are_gone_is_told_so(gone, tmp_path, write_run):
    """In a process of its own: what TensorStore still says to a loop that orbax has closed comes at any time."""
    run = write_run("draft")
    lost = run / "checkpoints" / "0" / "state" / gone
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    command = [sys.executable, "-m", "specexit", "convert", f"run={run}", f"out={tmp_path / 'draft'}"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    said = " ".join(ended.stderr.partition("error: ")[2].split())
    assert "cannot be read as a checkpoint: " in said
    assert "expected it whole, as `specexit train` wrote it" in said
    assert not (tmp_path / "draft").exists()


def test_an_interrupt_waits_for_what_is_being_saved_and_leaves_nothing(tmp_path, write_run, monkeypatch):
    convert(ConvertConfig(run=write_run("draft"), out=tmp_path / "draft"))
    save, start, ended = v1.partial.save, threading.Thread.start, []

    def late(thread):  # as on a busy machine: a thread works before the one that started it goes on
        start(thread)
        time.sleep(0.2)

    def interrupted(*arguments):
        _thread.interrupt_main()  # as Ctrl-C does
        save(*arguments)
        ended.append(arguments)

    monkeypatch.setattr(v1.partial, "save", interrupted)
    monkeypatch.setattr(threading.Thread, "start", late)
    before = sorted(tmp_path.iterdir())
    listener = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            convert(ConvertConfig(draft=tmp_path / "draft", out=tmp_path / "again"))
    finally:
        signal.signal(signal.SIGINT, listener)
    assert len(ended) == 1
    assert sorted(tmp_path.iterdir()) == before


MESHES = """
import json, sys
from pathlib import Path
import numpy as np
from jax_specexit.convert import convert
from jax_specexit.stored import open_checkpoint
from specexit.drafts.tensors import weights_hash
from specexit.schemas.convert import ConvertConfig
from specexit.schemas.train import MeshConfig
from specexit.tiny import EMBEDDED
import jax
draft, folder = Path(sys.argv[1]), Path(sys.argv[2])
assert len(jax.devices()) == 8
for name, mesh in (("8 x 1 x 1", MeshConfig(data=8)), ("2 x 2 x 2", MeshConfig(data=2, fsdp=2, tensor=2))):
    convert(ConvertConfig(draft=draft, out=folder / name, mesh=mesh))
    convert(ConvertConfig(run=folder / name, out=folder / f"{name} again", dtype="float32"))
    assert weights_hash(folder / f"{name} again") == weights_hash(draft), name
    print(json.loads((folder / name / "convert.json").read_text())["parameters_blake3"])
"""


def test_every_mesh_writes_and_reads_the_same_bits(tmp_path, write_run):
    run = write_run("fc")
    convert(ConvertConfig(run=run, out=tmp_path / "draft", dtype="float32"))
    command = [sys.executable, "-c", MESHES, str(tmp_path / "draft"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=simulated(8))
    assert done.returncode == 0, done.stderr
    expected = json.loads((tmp_path / "draft" / "convert.json").read_text())["parameters_blake3"]
    assert done.stdout.split() == [expected] * 2  # one device wrote the first, eight devices the others
    assert len(jax.devices()) == 1
