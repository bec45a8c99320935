"""What `collect` refuses of a target before anything starts: what it is, how long it is, how it is asked."""

import importlib.resources
import json
import re
import shutil
from contextlib import suppress

import pytest
import yaml

from specexit.config import ConfigError, load
from specexit.data.traces import read_traces
from specexit.errors import InputError
from specexit.schemas.bench import BenchConfig
from specexit.schemas.collect import CollectConfig
from specexit.schemas.features import FeaturesConfig
from specexit.schemas.target import load_target_config
from tests.torch.pretend import TARGET, THINK, TOKENIZER, config
from torch_specexit.chat import check_read, load_chat_tokenizer, misread_by_transformers, prompt_ids
from torch_specexit.collecting import collect
from torch_specexit.collecting.tracer import check_lengths
from torch_specexit.collecting.work import (
    CollectError,
    all_asks,
    check_positions,
    check_target,
    longest,
    why_no_features,
)

R1_0528 = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "attn_factor": 0.878248856}
"""Of DeepSeek-R1-0528-Qwen3-8B."""


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "architectures is MambaForCausalLM, but `specexit train` knows"),
        ({"architectures": "Qwen3ForCausalLM"}, "architectures is 'Qwen3ForCausalLM', which is no list, but"),
        ({"architectures": None}, "architectures is none, but"),
        (
            {"quantization_config": {"quant_method": "fp8"}},
            "quantization_config is {'quant_method': 'fp8'}, only {} is",
        ),
        ({"use_sliding_window": True}, "use_sliding_window is True, only False is implemented"),
        ({"attention_bias": True}, "attention_bias is true, which is implemented for Qwen2 only"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type is 'longrope', expected one of"),
        (
            {"rope_parameters": R1_0528},
            "attn_factor is 0.878249, which transformers and vLLM 0.32 pass over (they multiply rotated queries and "
            "keys by 1.13863), and older vLLM multiplies in (by 1): expected none, for the first, or "
            '"attention_factor": 1.0 beside it, for the second',
        ),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn', expected keys and values"),
        ({"rope_parameters": [4.0]}, "rope_parameters is [4.0], expected keys and values"),
    ],
)
def test_a_target_that_training_does_not_know(tmp_path, server, fields, message):
    target = _with_config(tmp_path, fields)
    with pytest.raises(ConfigError, match=rf"target \S+: .*{re.escape(message)}.* any_architecture=true"):
        collect(config(server, tmp_path / "out", target=target))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_hidden_layers": "4"}, r"config\.json: num_hidden_layers is '4', expected a whole number above 0"),
        ({"vocab_size": 512.5}, r"config\.json: vocab_size is 512\.5, expected a whole number"),
        ({"num_hidden_layers": None}, "the tokenizer of target tiny-reasoner cannot be loaded: .*num_hidden_layers"),
        ({"hidden_act": None}, "the tokenizer of target tiny-reasoner cannot be loaded: .*hidden_act"),
    ],
)
def test_a_damaged_config_of_a_model(tmp_path, server, fields, message):
    with pytest.raises(InputError, match=message) as caught:
        collect(config(server, tmp_path / "out", target=_with_config(tmp_path, fields)))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("schema", [BenchConfig, CollectConfig, FeaturesConfig])
def test_a_model_that_vllm_alone_would_have_otherwise_is_refused(schema):
    """Its traces were scored and trained on with the config.json that is in its folder."""
    said = r"engine\.extra is .*}: hf_overrides is .*rope_theta.*, expected none: .* into the config\.json of"
    with pytest.raises(ConfigError, match=said):
        load(schema, None, ["engine.extra.hf_overrides.rope_theta=500000.0"])


def test_a_config_without_what_every_reader_of_the_traces_asks_for(tmp_path, server):
    """As of a model that keeps its fields in ``text_config``: `annotate` would say so, behind days of traces."""
    target, path = _with_config(tmp_path, {"architectures": ["Mistral3ForConditionalGeneration"]}), tmp_path / "model"
    fields = json.loads((path / "config.json").read_text())
    del fields["vocab_size"]
    (path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ConfigError, match=r"config\.json: no value for vocab_size, expected the model's own"):
        collect(config(server, tmp_path / "out", target=target, any_architecture=True))
    assert not (tmp_path / "out").exists()


def test_what_features_will_refuse_is_said_before_traces_are_made(tmp_path):
    """It was said behind days of traces, of a config.json that was there from the beginning."""
    older = {"num_hidden_layers": None, "num_layers": 4, "rms_norm_eps": None, "layer_norm_epsilon": 1e-6}
    target = load_target_config(_with_config(tmp_path, {"architectures": ["ExaoneForCausalLM"]}))
    assert why_no_features(target) is None
    path = tmp_path / "model" / "config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | older))
    assert re.search(r"config\.json: no value for num_hidden_layers, rms_norm_eps, expected", why_no_features(target))
    path.write_text(json.dumps(fields | {"final_logit_softcapping": 30.0}))
    assert re.search(r"config\.json: final_logit_softcapping is 30\.0, expected", why_no_features(target))


def test_such_a_target_is_warned_of_and_collected_from_all_the_same(tmp_path, server, capsys):
    fields = {"architectures": ["GraniteForCausalLM"], "logits_scaling": 8.0}
    target = _with_config(tmp_path, fields)
    collect(config(server, tmp_path / "out", target=target, any_architecture=True))
    said = " ".join(capsys.readouterr().err.split())
    assert f"warning: {tmp_path}/model/config.json: logits_scaling is 8.0, expected" in said
    assert "plain and unscaled: `specexit features` will refuse these traces" in said


@pytest.mark.parametrize("key", ["think_start", "think_end"])
def test_a_marker_that_the_model_has_no_row_for(tmp_path, key):
    """A tokenizer was given the markers, and the model was not resized: each prompt has a token that it cannot read."""
    ids = {"think_start": THINK.start, "think_end": THINK.end}
    target = load_target_config(_with_config(tmp_path, {"vocab_size": ids[key]}))
    asked = CollectConfig(target="t", split="test", out=tmp_path / "out")
    said = rf"{key} '.*' is token {ids[key]}, but {tmp_path}/model/config\.json says vocab_size={ids[key]}: "
    with pytest.raises(ConfigError, match=said):
        check_target(asked, target, [])


def _with_config(tmp_path, fields):
    """A target whose model has another ``config.json``."""
    shutil.copytree(TARGET.folder, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(TARGET.model_dump(mode="json") | {"path": str(path.parent)}))
    return str(tmp_path / "t.yaml")


@pytest.mark.parametrize(
    ("fields", "most"),
    [
        ({}, 1000),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, 1000),
        ({"rope_parameters": {"rope_type": "default", "factor": 8.0}}, 1000),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, 2000),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, 4000),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 500}}, 2000),
        ({"max_position_embeddings": None}, None),
    ],
)
def test_a_length_that_no_engine_serves_the_model_with(tmp_path, server, fields, most):
    """An engine would say so after a minute, in a process of its own; a server elsewhere says what it takes itself."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"max_position_embeddings": 1000} | fields))

    def check(length: int, **changes) -> None:
        target = TARGET.model_copy(update={"path": str(model), "max_model_len": length})
        check_positions(config(server, tmp_path / "out", **changes), target)

    check(most or 10**9, endpoints=None)
    if most is None:
        return
    said = (
        rf"max_model_len is {most + 1}, expected at most {most}, by .*config\.json \(max_position_emb.*RoPE's scaling"
    )
    with pytest.raises(ConfigError, match=said):
        check(most + 1, endpoints=None)
    check(most + 1)
    check(most + 1, endpoints=None, engine={"extra": {"max_model_len": most}})


def test_a_target_whose_layers_the_model_does_not_have(tmp_path, server):
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(TARGET.model_dump(mode="json") | {"aux_layers": [1, 3, 9]}))
    with pytest.raises(ConfigError, match=r"aux_layers=\[1, 3, 9\]: expected ids from 0 \(the embedding\) to 4"):
        collect(config(server, tmp_path / "out", target=str(tmp_path / "t.yaml")))
    assert not (tmp_path / "out").exists()


def test_a_target_that_does_not_say_how_it_is_asked(tmp_path, server):
    bare = yaml.safe_dump(TARGET.model_dump(mode="json", exclude={"sampling", "trial"}))
    (tmp_path / "bare.yaml").write_text(bare)
    asked = {"target": str(tmp_path / "bare.yaml")}
    with pytest.raises(ConfigError, match="sampling is missing, expected temperature and max_tokens"):
        collect(config(server, tmp_path / "out", **asked))
    with pytest.raises(ConfigError, match=r"trial\.math is missing, expected the text to force behind '</think>'"):
        collect(config(server, tmp_path / "out", **asked, temperature=0, max_new_tokens=500))


@pytest.mark.parametrize(
    ("file", "content", "chat", "message"),
    [
        ("chat_template.jinja", "{{ raise_exception('system message needed') }}", {}, "system message needed"),
        ("chat_template.jinja", "{{ messages[0].content", {}, "unexpected end of template"),
        ("chat_template.jinja", None, {}, "chat_template is not set"),
        ("chat_template.jinja", "{{ 1 / 0 }}", {}, "cannot be applied: division by zero"),
        (None, None, {"tokenize": True}, r"gets tokenize from specexit itself, .* chat \{'tokenize': True\} without"),
        (None, None, {"add_generation_prompt": True}, "gets add_generation_prompt from specexit itself"),
    ],
)
def test_a_chat_template_that_cannot_be_applied(tmp_path, server, file, content, chat, message):
    """In one line, with the prompt and the target, before anything is asked or written."""
    shutil.copytree(TARGET.folder, tmp_path / "model")
    if file is not None:
        for path in (tmp_path / "model").glob("tokenizer_config.json"):
            fields = json.loads(path.read_text())
            fields.pop("chat_template", None)
            path.write_text(json.dumps(fields))
        (tmp_path / "model" / file).unlink(missing_ok=True)
        if content is not None:
            (tmp_path / "model" / file).write_text(content)
    target = TARGET.model_copy(update={"name": "mine", "path": str(tmp_path / "model"), "chat": chat})
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(target.model_dump(mode="json")))
    with pytest.raises(InputError, match=rf"prompt 'test-0-00000': the chat template of target mine .*{message}"):
        collect(config(server, tmp_path / "out", target=str(tmp_path / "mine.yaml")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("template", ["x", "{% for m in messages if m.role == 'human' %}{{ m.content }}{% endfor %}"])
def test_a_chat_template_that_drops_what_is_asked(tmp_path, server, template):
    """Each trace would have answered a question that nobody asked, and all of them the same."""
    shutil.copytree(TARGET.folder, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    target = TARGET.model_copy(update={"name": "mine", "path": str(tmp_path / "model")})
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(target.model_dump(mode="json")))
    asked = {"target": str(tmp_path / "mine.yaml")}
    said = (
        r"prompts 'test-0-00000' and 'test-0-00001' are the same \d+ tokens, .* mine does not write what the user says"
    )
    with pytest.raises(InputError, match=said):
        collect(config(server, tmp_path / "out", **asked))
    assert not (tmp_path / "out").exists()
    rows = [{"id": "a", "prompt": "3 + 4?"}, {"id": "b", "prompt": "3 + 4? "}]  # these two are one in many a template
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked |= {"split": None, "n": None, "prompts": str(tmp_path / "prompts.jsonl")}
    check_lengths(made := config(server, tmp_path / "out", **asked), target, all_asks(made, target))


SWITCH = (
    "{% for m in messages %}{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    "{% if reasoning_effort is defined %}{{ reasoning_effort }}{% endif %}"
)
"""Qwen3's way of not thinking, and an option of another model."""


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ({"enable_thinking": True}, None),
        ({"enable_thinking": True, "reasoning_effort": "high"}, None),
        (
            {"enable_thinkin": False},
            "chat.enable_thinkin is False, but its chat template in .*model does not use 'enable_thinkin', "
            "did you mean 'enable_thinking'",
        ),
        ({"reasoning_efort": 1}, "does not use 'reasoning_efort', did you mean 'reasoning_effort'"),
        ({"chat_template": "x"}, "does not use 'chat_template'$"),
        ({"max_length": 8}, "does not use 'max_length'$"),
        (
            {"enable_thinking": False},
            r"closes the thinking with its chat {'enable_thinking': False}: .*</think>\\n\\n'",
        ),
    ],
)
def test_options_of_the_chat_template(tmp_path, chat, message):
    shutil.copytree(TARGET.folder, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(SWITCH)
    target = TARGET.model_copy(update={"path": str(tmp_path / "model"), "chat": chat})
    messages = [{"role": "user", "content": "What is 3 + 4? </think>"}]
    chat = load_chat_tokenizer(target)
    if message is not None:
        with pytest.raises(InputError, match=message):
            prompt_ids(chat, TOKENIZER, target, messages)
        return
    ids = prompt_ids(chat, TOKENIZER, target, messages)
    assert TOKENIZER.decode(ids).endswith("<think>\n")
    assert ids.count(THINK.start) == 1


@pytest.mark.parametrize(
    ("chat", "warned"), [({}, True), ({"date": "1 May 2026"}, False), ({"enable_thinking": True}, True)]
)
def test_a_prompt_that_is_another_one_tomorrow_is_a_warning(tmp_path, server, capsys, chat, warned):
    """SmolLM3's template writes today's date: a prompt that was trained on was not known again the day after."""
    shutil.copytree(TARGET.folder, tmp_path / "model")
    dated = "{% if date is not defined %}{% set date = strftime_now('%d %B %Y') %}{% endif %}Today Date: {{ date }}\n"
    template = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())["chat_template"]
    (tmp_path / "model" / "chat_template.jinja").write_text(dated + template)
    changes = {"name": "mine", "path": str(tmp_path / "model"), "chat": chat, "split_connectors": ("Hold on",)}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(TARGET.model_copy(update=changes).model_dump(mode="json")))
    with suppress(CollectError):
        collect(config(server, tmp_path / "out", target=str(tmp_path / "mine.yaml"), model="elsewhere"))
    said = capsys.readouterr().err
    assert ("warning: target mine: its chat template writes today's date" in said) == warned
    assert re.search(r"warning: target mine: hardly a step will end at 'Hold on', as .*model has no token for it", said)


def test_an_option_of_a_shipped_target_may_be_given_to_any():
    target = TARGET.model_copy(update={"chat": {"enable_thinking": True}})
    messages = [{"role": "user", "content": "What is 3 + 4?"}]
    plain = prompt_ids(load_chat_tokenizer(TARGET), TOKENIZER, TARGET, messages)
    assert prompt_ids(load_chat_tokenizer(target), TOKENIZER, target, messages) == plain


def test_a_prompt_that_is_longer_than_the_model(tmp_path, server):
    """Found before anything is asked or written, not when its turn comes."""
    rows = [{"id": "short", "prompt": "What is 3 + 4?"}, {"id": "long", "prompt": "What is " + "3 + " * 800 + "4?"}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = {"split": None, "n": None, "prompts": str(tmp_path / "prompts.jsonl")}
    with pytest.raises(InputError, match=r"'long' is \d+ tokens long, expected fewer than .* max_model_len 1024"):
        collect(config(server, tmp_path / "out", **asked))
    assert not (tmp_path / "out").exists()


def test_a_prompt_that_is_longer_than_the_engine_is_told_to_read(tmp_path, server):
    """The target has room for it, and the engine, which has not, would end when its turn comes."""
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"id": "long", "prompt": "What is " + "3 + " * 100 + "4?"}))
    engine = {"extra": {"max_model_len": 100}}
    asked = {"split": None, "n": None, "prompts": str(tmp_path / "prompts.jsonl"), "engine": engine}
    with pytest.raises(InputError, match=r"'long' is \d+ tokens .* fewer than engine\.extra's max_model_len 100"):
        collect(config(server, tmp_path / "out", **asked, endpoints=None))
    assert not (tmp_path / "out").exists()
    with pytest.raises(CollectError):  # a server reads what it reads
        collect(config(server, tmp_path / "out", **asked, model="elsewhere"))


@pytest.mark.parametrize(("told", "expected"), [(100, 100), (10**6, 1024), (-1, 1024), ("auto", 1024)])
def test_the_longest_text_is_what_target_and_engine_both_have_room_for(tmp_path, server, told, expected):
    asked = config(server, tmp_path / "out", endpoints=None, engine={"extra": {"max_model_len": told}})
    assert longest(asked, TARGET) == expected


def test_a_file_that_transformers_makes_anew_is_asked_by_its_own_tokens_and_started_by_no_engine(tmp_path, server):
    """As DeepSeek-R1-Distill-Llama is published: its class is built of the vocabulary alone, and drops spaces and line
    breaks. Prompts had none, and no trial ended at a line break; nothing was said."""
    target = _with_config(tmp_path, {})
    path = tmp_path / "model" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "LlamaTokenizerFast"}))
    with pytest.raises(
        ConfigError, match=r"tokenizer_config\.json: .* LlamaTokenizer that reads 'What is 3 \+ 4\?.* as '"
    ):
        collect(config(server, tmp_path / "out", target=target, endpoints=None))
    assert not (tmp_path / "out").exists()
    collect(config(server, tmp_path / "out", target=target))  # that server reads what the file says
    traces = read_traces(tmp_path / "out")
    assert all(f"user\n{trace.prompt}<|im_end|>\n" in TOKENIZER.decode(trace.prompt_ids) for trace in traces)
    assert len(traces) == 12


def _with_tokenizer(tmp_path, **fields):
    """A target whose model has another ``tokenizer_config.json``, and a Mistral's ``config.json``."""
    shutil.copytree(TARGET.folder, tmp_path / "model")
    path = tmp_path / "model" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return TARGET.model_copy(update={"path": str(tmp_path / "model")})


def test_what_is_read_wrongly_for_the_models_type_is_read_rightly_where_the_refusal_says(tmp_path):
    """A Qwen2 gets a class of its own whatever its tokenizer_class says: the remedy was the class that stood there."""
    target = _with_tokenizer(tmp_path)
    config, tokenizer = (tmp_path / "model" / name for name in ("config.json", "tokenizer.json"))
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "qwen2"}))
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()) | {"normalizer": {"type": "Lowercase"}}))
    with pytest.raises(
        ConfigError, match=r"makes a Qwen2Tokenizer that .* says PreTrainedTokenizerFast: .*--tokenizer"
    ):
        check_read(target, {})
    config.unlink()
    assert misread_by_transformers(target) is None


def test_a_folder_that_brings_code_of_its_own_asks_no_question(tmp_path, monkeypatch):
    """As Ling, MiniCPM and Kimi do: transformers would ask on the terminal whether to run it, for 15 seconds a time."""
    asked = []
    monkeypatch.setattr("builtins.input", lambda text: asked.append(text) or "n")
    target = _with_tokenizer(tmp_path, tokenizer_class="TokenizersBackend")
    config = tmp_path / "model" / "config.json"
    mapped = {"model_type": "bailing_moe_x", "auto_map": {"AutoConfig": "configuration.BailingConfig"}}
    config.write_text(json.dumps(json.loads(config.read_text()) | mapped))
    ids = prompt_ids(load_chat_tokenizer(target), TOKENIZER, target, [{"role": "user", "content": "What is 3 + 4?"}])
    assert TOKENIZER.decode(ids).endswith("<think>\n")
    tokenizer = tmp_path / "model" / "tokenizer_config.json"
    own = {
        "tokenizer_class": "BailingTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization.BailingTokenizer", None]},
    }
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()) | own))
    with pytest.raises(InputError, match=r"code that lies there, .* not run: take auto_map out of tokenizer_config"):
        load_chat_tokenizer(target)
    assert not asked


def test_a_tekken_file_in_the_place_of_the_chat_template_is_refused(tmp_path):
    """As Magistral may have beside both: prompts had no system prompt and no ``[THINK]`` was read, and what was said
    named the tokenizer_class."""
    pytest.importorskip("mistral_common")
    target = _with_tokenizer(tmp_path)
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "mistral"}))
    load_chat_tokenizer(target)
    folder = importlib.resources.files("mistral_common") / "data"
    tekken = json.loads((folder / "tekken_240911.json").read_text())
    tekken["vocab"] = tekken["vocab"][:256]  # the bytes
    tekken["config"] |= {"default_vocab_size": 1256, "num_vocab_tokens": 256}
    (tmp_path / "model" / "tekken.json").write_text(json.dumps(tekken))
    with pytest.raises(InputError, match=r"tekken\.json: .* neither tokenizer\.json nor the chat template .*: move it"):
        load_chat_tokenizer(target)
