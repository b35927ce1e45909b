"""The demo model: the same bytes each time, whole or not there, and of use to a chat client."""

import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jinja2
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from dynaserve import demo_model as demo_model_module
from dynaserve.demo import documents, folder, weights
from dynaserve.demo.tokenizer import EOS, SPECIAL_TOKENS, TOOL_TOKENS, VOCAB_SIZE, train_tokenizer
from dynaserve.demo_model import default_folder, demo_model

FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
# Certified outputs are only comparable between machines while these hold.
WEIGHTS_SHA256 = "85488a02a88754e3bc2bbf2f76e2eea9ce43a7cdadb98ec63421640a77a26e7a"
TOKENIZER_SHA256 = "ba40d6c64bdc2b9f45783cfefc59104377c3d7c64deb69015a3840c7bf4c2246"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_model(tmp_path_factory.mktemp("demo") / "model")


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Tokenizer:
    return Tokenizer.from_file(str(model / "tokenizer.json"))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digests(model: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in model.iterdir()}


def render(**variables: object) -> str:
    """Render the chat template the way transformers does."""

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    template = environment.from_string(documents.CHAT_TEMPLATE.read_text())
    return template.render(bos_token="<|bos|>", **variables)


def test_the_bytes_are_those_of_every_other_machine(model: Path) -> None:
    assert sha256(model / "model.safetensors") == WEIGHTS_SHA256
    assert sha256(model / "tokenizer.json") == TOKENIZER_SHA256


def test_another_process_with_another_hash_seed_makes_the_same_folder(
    model: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"

    subprocess.run(
        [sys.executable, "-m", "dynaserve.demo_model", str(other)],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )

    assert digests(other) == digests(model)


def test_the_folder_holds_what_a_hugging_face_model_has_and_all_may_read_it(model: Path) -> None:
    assert {path.name for path in model.iterdir()} == FILES
    assert {path.stat().st_mode & 0o777 for path in model.iterdir()} == {0o644}
    assert model.stat().st_mode & 0o777 == 0o755


def test_a_folder_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    present = tmp_path / "model"
    present.mkdir()

    assert demo_model(present) == present
    assert list(present.iterdir()) == []


def test_makers_at_the_same_time_get_one_whole_model(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "model"

    with ThreadPoolExecutor(4) as makers:
        made = list(makers.map(demo_model, [target] * 4))

    assert made == [target] * 4
    assert digests(target) == digests(model)
    assert list(tmp_path.iterdir()) == [target]


def test_a_maker_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_off(path: Path) -> None:
        (path / "config.json").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "write_folder", break_off)

    with pytest.raises(OSError, match="No space"):
        demo_model(tmp_path / "model")

    assert list(tmp_path.iterdir()) == []


def test_the_name_of_the_folder_follows_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    before = default_folder()

    monkeypatch.setattr(folder, "EOS_GAIN", 2.0)

    assert default_folder().parent == before.parent
    assert default_folder() != before


def test_tensors_have_the_shapes_the_configuration_says(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    tensors = load_file(model / "model.safetensors")

    narrow = config["num_key_value_heads"] * config["head_dim"]
    assert tensors["lm_head.weight"].shape == (config["vocab_size"], config["hidden_size"])
    assert tensors["model.layers.3.self_attn.k_proj.weight"].shape == (narrow, 256)
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float32)}
    assert len(tensors) == 9 * config["num_hidden_layers"] + 3


def test_another_seed_is_another_model() -> None:
    one, same, other = (weights.uniform_source(seed)((4, 4), 1.0) for seed in (1, 1, 2))

    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_the_draw_has_the_deviation_asked_for() -> None:
    values = weights.uniform_source(3)((500, 500), 0.5)

    assert abs(float(values.std()) - 0.5) < 0.01
    assert abs(float(values.mean())) < 0.01


def test_the_vocabulary_is_full_and_begins_with_the_special_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("text", ["How are you today?", "naïve 雪 🌨\n\t{}", '{"a": [1, 2]}', ""])
def test_any_text_survives_encoding_and_decoding(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_tool_marks_stay_in_decoded_text_and_turn_marks_do_not(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<tool_call>x</tool_call><|im_end|>").ids

    assert tokenizer.decode(ids) == "<tool_call>x</tool_call>"
    assert {tokenizer.token_to_id(token) for token in TOOL_TOKENS[:2]} < set(ids)


def test_ending_is_likelier_than_other_tokens_and_other_marks_are_not() -> None:
    trained = train_tokenizer()
    gains = {trained.id_to_token(index): gain for index, gain in folder.logit_gains(trained)}

    assert gains[EOS] > 1
    assert gains["<tool_call>"] < 1
    assert "Ġhelp" not in gains
    assert len(gains) < VOCAB_SIZE / 4


def test_a_chat_is_written_turn_by_turn() -> None:
    text = render(
        messages=[
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
        ],
        add_generation_prompt=True,
    )

    assert text == (
        "<|bos|><|im_start|>system\nBe kind.\n<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_tools_calls_and_their_answers_are_in_the_prompt() -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
    text = render(
        messages=[
            {"role": "user", "content": "Rain?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "no"},
        ],
        tools=[{"type": "function", "function": {"name": "weather"}}],
    )

    assert '{"function": {"name": "weather"}, "type": "function"}' in text
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>' in text
    assert "<tool_response>\nno\n</tool_response>" in text


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(jinja2.TemplateError, match="unknown role: judge"):
        render(messages=[{"role": "judge", "content": "x"}])


def test_the_program_prints_where_the_model_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["demo_model", str(tmp_path / "model")])

    demo_model_module.main()

    assert capsys.readouterr().out.strip() == str(tmp_path / "model")
