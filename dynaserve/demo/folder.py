"""The demo model's folder: written whole or not at all, named after what it is made from."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from inspect import getsource
from pathlib import Path

from safetensors.numpy import save_file
from tokenizers import Tokenizer

from dynaserve.demo import documents, tokenizer, weights
from dynaserve.demo.tokenizer import CORPUS, EOS, SPECIAL_TOKENS, TOOL_TOKENS, VOCAB_SIZE

# Greedy text ends of itself after several hundred tokens.
EOS_GAIN = 1.15
# What is no text by itself is hardly ever chosen, so that answers can be read.
ODD_TOKEN_GAIN = 0.3


def recipe_hash() -> str:
    """Twelve hex digits that change with anything the folder is made from."""
    recipe = hashlib.sha256()
    for module in (documents, tokenizer, weights):
        recipe.update(getsource(module).encode())
    recipe.update(CORPUS.read_bytes())
    recipe.update(documents.CHAT_TEMPLATE.read_bytes())
    recipe.update(f"{EOS_GAIN} {ODD_TOKEN_GAIN}".encode())
    return recipe.hexdigest()[:12]


def logit_gains(trained: Tokenizer) -> Iterator[tuple[int, float]]:
    """How much likelier or unlikelier single tokens are made."""
    for token, index in trained.get_vocab().items():
        if token == EOS:
            yield index, EOS_GAIN
        elif token in (*SPECIAL_TOKENS, *TOOL_TOKENS) or not is_text(trained, index):
            yield index, ODD_TOKEN_GAIN


def is_text(trained: Tokenizer, index: int) -> bool:
    """Whether the token decodes to printable characters or spaces by itself."""
    text = trained.decode([index])
    return bool(text) and text.isascii() and (text.isprintable() or text.isspace())


def write_json(path: Path, document: Mapping[str, object]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n")


def write_folder(folder: Path) -> None:
    """Write every file of the model into an existing folder."""
    trained = tokenizer.train_tokenizer()
    trained.save(str(folder / "tokenizer.json"))
    write_json(folder / "config.json", documents.CONFIG)
    write_json(folder / "generation_config.json", documents.GENERATION_CONFIG)
    write_json(folder / "special_tokens_map.json", documents.SPECIAL_TOKENS_MAP)
    template = documents.CHAT_TEMPLATE.read_text()
    write_json(
        folder / "tokenizer_config.json",
        documents.TOKENIZER_CONFIG | {"chat_template": template},
    )
    tensors = weights.make_weights(VOCAB_SIZE, logit_gains(trained))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes for the owner alone


def make_folder(folder: Path) -> Path:
    """Make the model unless it is there; of several makers at once one wins, all are served."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write_folder(draft)
        draft.chmod(0o755)
        os.rename(draft, folder)
    except OSError:
        if not folder.is_dir():  # not beaten to it: something is wrong
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder
