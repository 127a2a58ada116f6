"""The configuration and the weights of a GGUF file, as transformers names and shapes them.

transformers reads GGUF files itself, but leaves out what it does not know, such as a factor of the
rotary embedding or a bias. The model would then compute something else, without any error. So what
it leaves out is looked for, and refused.
"""

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chattune.errors import BaseError, first_line
from chattune.folders import write_json
from chattune.gguf_file.header import Header, Tensor

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_MODEL_TYPES = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe"}  # others have the same name
_MOST_LAYERS = 512
_ROTARY_FACTORS = "rope_freqs.weight"
_UNROUNDED = {"F16", "F32", "F64"}  # types of matrices that bf16 would round


def write_model(path: Path, header: Header, folder: Path, name: str) -> None:
    """Write config.json and model.safetensors of a GGUF file to `folder`.

    The weights are in bf16, or in fp32 if a matrix of the file is in fp16 or fp32. Raises
    BaseError, which calls the file `base {name}`, if transformers cannot read it or would leave a
    part of it out.
    """
    from safetensors.torch import save_file

    _check_architecture(header, name)
    dtype = _dtype(header)
    try:
        config = _read_config(path, header)
        model = _empty_model(config)
        left_out = _left_out(header, model)
        tensors = {} if left_out else _read_tensors(path, header, model, dtype)
    except Exception as error:  # each architecture raises its own types
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise BaseError(
            f"base {name}: transformers cannot read it ({reason!r}); use the folder or Hub id of "
            "the model that the file was converted from"
        ) from error
    if left_out:
        raise BaseError(
            f"base {name}: transformers would leave out {left_out}, and compute another model; "
            "use the folder or Hub id of the model that the file was converted from"
        )
    _check_tensors(tensors, model, name)
    config |= {"architectures": [type(model).__name__], "dtype": str(dtype).removeprefix("torch.")}
    write_json(folder / "config.json", config)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _check_architecture(header: Header, name: str) -> None:
    """Raise BaseError unless transformers knows the architecture, and all its layers are there.

    transformers would build as many layers as the file claims, which may take for ever.
    """
    from transformers.integrations import GGUF_CONFIG_MAPPING

    architecture = header.metadata.get("general.architecture")
    if not isinstance(architecture, str) or _model_type(architecture) not in GGUF_CONFIG_MAPPING:
        raise BaseError(
            f"base {name}: its architecture is {architecture!r:.40}, which transformers cannot "
            "read from a GGUF file; use the folder or Hub id of the model that it was made of"
        )
    layers = header.metadata.get(f"{architecture}.block_count")
    found = {t.name.split(".")[1] for t in header.tensors if t.name.startswith("blk.")}
    if not isinstance(layers, int) or layers != len(found) or layers > _MOST_LAYERS:
        raise BaseError(
            f"base {name}: it holds {len(found)} layers, and claims {layers!r:.40} (at most "
            f"{_MOST_LAYERS} are read); get a file with a language model, or download it again"
        )


def _model_type(architecture: str) -> str:
    """Return transformers' name of an architecture."""
    return _MODEL_TYPES.get(architecture, architecture)


def _dtype(header: Header) -> "torch.dtype":
    """Return the dtype of the saved weights: bf16 unless it would round a matrix of the file.

    Matrices that were quantised are further from the model's own than bf16 rounds. In bf16 they
    take half the space, and are the same numbers to training in bf16 and to replies in fp32. For
    SmolLM2 in Q4_1 they change the loss by 0.0003 nats (3.4111 and 3.4114, on 1,752 tokens).
    """
    import torch

    exact = any(t.kind in _UNROUNDED and len(t.shape) > 1 for t in header.tensors)
    return torch.float32 if exact else torch.bfloat16


def _read_config(path: Path, header: Header) -> dict[str, Any]:
    """Return the content of config.json: what the file says, under transformers' names.

    It has nothing else, such as the version and the defaults of the installed transformers, so that
    the base has the same fingerprint on every machine.
    """
    from transformers.integrations import GGUF_CONFIG_DEFAULTS_MAPPING, GGUF_CONFIG_MAPPING

    metadata, architecture = header.metadata, header.metadata["general.architecture"]
    model_type = _model_type(architecture)
    tensors = {tensor.name: tensor for tensor in header.tensors}
    config = {
        "model_type": model_type,
        "tie_word_embeddings": "output.weight" not in tensors,
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        **GGUF_CONFIG_DEFAULTS_MAPPING.get(model_type, {}),
    }
    for part, names in ((architecture, model_type), ("tokenizer", "tokenizer")):
        for key, name in GGUF_CONFIG_MAPPING[names].items():
            if name is not None and (value := metadata.get(f"{part}.{key}")) is not None:
                config[name] = _shortest(value)
    if heads := config.get("num_attention_heads"):
        key = f"{architecture}.attention.key_length"
        config.setdefault("head_dim", metadata.get(key, config["hidden_size"] // heads))
    if factors := tensors.get(_ROTARY_FACTORS):
        config["rope_scaling"] = _llama_3_scaling(config, _read_factors(path, factors))
    return config


def _shortest(value: Any) -> Any:
    """Return a number that was stored in fp32 with the digits that tell it apart: 1e-05."""
    import numpy as np

    return float(str(np.float32(value))) if isinstance(value, float) else value


def _read_factors(path: Path, tensor: Tensor) -> "torch.Tensor":
    import torch

    if tensor.kind != "F32":
        raise ValueError(f"{tensor.name} is of type {tensor.kind}")
    return torch.from_file(str(path), False, tensor.begin // 4 + tensor.count)[tensor.begin // 4 :]


def _llama_3_scaling(config: dict[str, Any], factors: "torch.Tensor") -> dict[str, Any]:
    """Return Llama 3's rotary scaling, of which a GGUF file has only the resulting factors.

    `factors` (half a head's width) divide the rotary frequencies. Raises ValueError unless they
    are those of a scaling with the lengths that all models of Llama 3 have.
    """
    import torch
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3",
        "factor": factors.max().item(),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    scaled = AutoConfig.for_model(**config, rope_scaling=scaling)
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](scaled, "cpu")
    width = config["head_dim"]
    unscaled = config["rope_theta"] ** (-torch.arange(0, width, 2) / width)
    if factors.shape != frequencies.shape or not torch.allclose(
        unscaled / factors, frequencies, rtol=1e-3, atol=0
    ):
        raise ValueError(f"{_ROTARY_FACTORS} is no rotary scaling of Llama 3")
    return scaling


def _empty_model(config: dict[str, Any]) -> "PreTrainedModel":
    """Return the modules of a configuration without weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))


def _left_out(header: Header, model: "PreTrainedModel") -> str | None:
    """Return what transformers does not read though the model depends on it, or None.

    Weights are counted rather than compared by name, because some architectures store several of a
    model's tensors as one.
    """
    from transformers.integrations import GGUF_CONFIG_MAPPING

    architecture, config = header.metadata["general.architecture"], model.config
    known = GGUF_CONFIG_MAPPING[_model_type(architecture)]
    width = getattr(config, "head_dim", None)
    usual = {  # values of keys that transformers need not read
        **dict.fromkeys(("attention.key_length", "attention.value_length"), width),
        **{"rope.dimension_count": width, "vocab_size": config.vocab_size},
        **{"rope.scaling.type": "none", "expert_count": 0, "expert_used_count": 0},
    }
    for key, value in header.metadata.items():
        part, _, setting = key.partition(".")
        if part == architecture and not known.get(setting) and usual.get(setting) != value:
            return f"its setting {key!r:.80}"
    stored = sum(t.count for t in header.tensors if t.name != _ROTARY_FACTORS)
    used = sum(parameter.numel() for parameter in model.parameters())
    if stored != used:
        return f"weights (the file has {stored:,}, and {architecture} as configured {used:,})"
    return None


def _read_tensors(
    path: Path, header: Header, model: "PreTrainedModel", dtype: "torch.dtype"
) -> "dict[str, torch.Tensor]":
    """Return the weights under transformers' names, and with its order of rows.

    This is `load_gguf_checkpoint` of transformers without its reader of the header and its search
    for names in each module, which take ten times as long as all the rest.
    """
    import numpy as np
    import torch
    from gguf import GGMLQuantizationType, dequantize, quant_shape_to_byte_shape
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

    architecture = header.metadata["general.architecture"]
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
    names = _names(architecture, model, processor)
    content = np.memmap(path, mode="r")
    tensors: dict[str, torch.Tensor] = {}
    for tensor in header.tensors:
        kind = GGMLQuantizationType[tensor.kind]
        shape = quant_shape_to_byte_shape(tensor.shape, kind)
        stored = content[tensor.begin : tensor.begin + prod(shape)].reshape(shape)
        weights, name, _ = processor.process(
            weights=dequantize(stored, kind),
            name=tensor.name,
            tensor_key_mapping=names,
            parsed_parameters={"tensors": tensors},
        )
        if name in names:
            tensors[names[name]] = torch.from_numpy(np.array(weights, np.float32)).to(dtype)
    return {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}


def _names(architecture: str, model: "PreTrainedModel", processor: Any) -> dict[str, str]:
    """Return transformers' name of each of the model's tensors by its name in GGUF files."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    known = {name: number for number, name in MODEL_ARCH_NAMES.items()}
    known_names = get_tensor_name_map(known[architecture], model.config.num_hidden_layers)
    names: dict[str, str] = {}
    for name in map(processor.preprocess_name, model.state_dict()):
        module, _, kind = name.rpartition(".")
        if (gguf_name := known_names.get_name(module)) is None:
            processor.perform_fallback_tensor_mapping(names, f".{kind}", "", name)
        else:
            names[f"{gguf_name}.{kind}"] = name
    return names


def _check_tensors(tensors: "dict[str, torch.Tensor]", model: "PreTrainedModel", name: str) -> None:
    """Raise BaseError unless the tensors fill the model, and hold finite numbers."""
    expected = {key: parameter.shape for key, parameter in model.named_parameters()}
    odd = expected.keys() ^ tensors.keys()
    odd |= {key for key in expected.keys() & tensors.keys() if expected[key] != tensors[key].shape}
    odd = odd or {key for key, tensor in tensors.items() if not tensor.isfinite().all()}
    if odd:
        raise BaseError(
            f"base {name}: {len(odd)} of its tensors are missing, of another shape, or not finite, "
            f"such as {min(odd)!r:.80}; download or convert the file again"
        )
