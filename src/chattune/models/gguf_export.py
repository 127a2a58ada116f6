"""A merged run as one GGUF file, which llama.cpp, Ollama and LM Studio run."""

import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from gguf import (
    GGML_QUANT_VERSION,
    MODEL_ARCH_NAMES,
    GGUFReader,
    GGUFWriter,
    LlamaFileType,
    size_label,
)
from gguf.quants import dequantize

from chattune.base import Base, model_config
from chattune.errors import BaseError, OutputError, UserError, VerificationError
from chattune.models.gguf_metadata import add_description, add_sampling, add_shape
from chattune.models.gguf_tensors import (
    ARCHITECTURES,
    QUANTIZATIONS,
    as_array,
    bytes_of,
    rounding,
    stored,
    tensors_of,
    type_of,
)
from chattune.models.gguf_tokenizer import add_tokenizer, pre_tokenizer_name
from chattune.run import Run
from chattune.template import Template

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

log = logging.getLogger(__name__)

_FILE_TYPES = {"q8_0": LlamaFileType.MOSTLY_Q8_0, "f16": LlamaFileType.MOSTLY_F16}


def check_gguf(base: Base, template: Template, quantization: str) -> None:
    """Raise an error if a run of this base cannot become a GGUF file that computes the same.

    It is a BaseError for a model or a tokenizer that llama.cpp does not compute as transformers
    does, and a UserError for an unknown quantization.
    """
    if quantization not in QUANTIZATIONS:
        known = ", ".join(QUANTIZATIONS)
        raise UserError(f"--quantize {quantization}: no such quantization; there are {known}")
    if base.config["model_type"] not in ARCHITECTURES:
        raise _refusal(
            base,
            f"chattune writes the architectures {', '.join(ARCHITECTURES)} there, and this model "
            f"is of the type {base.config['model_type']}",
        )
    if problem := _config_problem(model_config(base)):
        raise _refusal(base, problem)
    pre_tokenizer_name(template)


def gguf_bytes(model: "PreTrainedModel", quantization: str) -> int:
    """Return how many bytes the tensors of a model take, which may be on PyTorch's meta device."""
    return sum(
        bytes_of(tensor.shape, type_of(name, tensor.shape, quantization))
        for name, tensor in tensors_of(model)
    )


def write_gguf(
    model: "PreTrainedModel",
    run: Run,
    template: Template,
    base: Base,
    target: Path,
    quantization: str,
) -> None:
    """Write a merged model with its tokenizer as a GGUF file, and read it back.

    Raises OutputError if the file cannot be written, and VerificationError if a tensor that was
    read back differs from the model's by more than the rounding of its type; in both cases nothing
    is left behind.
    """
    with _atomic_file(target) as temporary:
        writer = GGUFWriter(None, MODEL_ARCH_NAMES[ARCHITECTURES[model.config.model_type]])
        try:
            add_description(writer, run, base, target)
            add_sampling(writer, run)
            add_shape(writer, model.config)
            writer.add_file_type(_FILE_TYPES[quantization])
            writer.add_quantization_version(GGML_QUANT_VERSION)
            add_tokenizer(writer, template, model.get_input_embeddings().num_embeddings)
            _write(writer, model, temporary, quantization)
        finally:
            writer.close()
        _verify(temporary, model, quantization)


def check_new_file(file: Path) -> None:
    """Raise OutputError if a file or a folder of this name exists."""
    try:
        taken = file.exists() or file.is_symlink()
    except OSError as error:  # a name that is too long, for example
        raise _unwritable(file, error) from error
    if taken:
        raise OutputError(f"--gguf {file}: exists; choose another name, or remove it")


def _write(writer: GGUFWriter, model: "PreTrainedModel", file: Path, quantization: str) -> None:
    """Write the file, with one tensor at a time in its rounded form in memory."""
    for name, tensor in tensors_of(model):
        kind = type_of(name, tensor.shape, quantization)
        writer.add_tensor_info(
            name, tensor.shape, np.dtype(np.float32), bytes_of(tensor.shape, kind), kind
        )
    writer.add_size_label(size_label(*writer.get_total_parameter_count()))
    writer.write_header_to_file(file)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in tensors_of(model):
        writer.write_tensor_data(stored(tensor, type_of(name, tensor.shape, quantization)))


def _verify(file: Path, model: "PreTrainedModel", quantization: str) -> None:
    """Raise VerificationError unless the file's tensors are the model's, but for the rounding."""
    written = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    in_f16 = []
    for name, tensor in tensors_of(model):
        kind, values, found = type_of(name, tensor.shape, quantization), as_array(tensor), None
        if name in written and written[name].tensor_type == kind:
            found = dequantize(written.pop(name).data, kind)
        if found is None or found.shape != values.shape:
            raise VerificationError(f"GGUF file: {name} is missing from it; it was removed")
        if not (np.abs(found - values) <= rounding(values, kind)).all():  # also true of NaN
            raise VerificationError(
                f"GGUF file: {name}, read back, differs from the merged weights by more than the "
                f"rounding of {kind.name}; it was removed"
            )
        if quantization == "q8_0" and kind.name == "F16":
            in_f16.append(name)
    if in_f16:
        log.info(
            "%d matrices are in f16, because their rows are no multiple of 32 numbers, such as %s",
            len(in_f16),
            in_f16[0],
        )


def _config_problem(config: "PretrainedConfig") -> str | None:
    """Return what a model has that llama.cpp lacks for its architecture, or None for nothing."""
    kind, rope = config.model_type, config.rope_parameters["rope_type"]
    if config.hidden_act != "silu":
        return f"llama.cpp knows only the activation silu for it, and this is {config.hidden_act}"
    if rope != "default" and (kind not in ("llama", "mistral") or rope not in ("linear", "llama3")):
        return f"chattune does not write the rotary scaling {rope} for the model type {kind}"
    if kind != "llama" and any(getattr(config, n, False) for n in ("attention_bias", "mlp_bias")):
        return f"llama.cpp has no biases for the model type {kind}"
    interval = 4  # llama.cpp's own; no file can say another
    expected = [int((i + 1) % interval != 0) for i in range(config.num_hidden_layers)]
    if getattr(config, "no_rope_layers", expected) != expected:
        return "llama.cpp leaves out rotary positions in every fourth layer, this model in others"
    return None


@contextmanager
def _atomic_file(file: Path) -> Iterator[Path]:
    """Yield the name of a temporary file that becomes `file` if the block ends without an error.

    After an error nothing is left behind, not even parent folders that were created. An OSError
    becomes an OutputError.
    """
    missing_parents: list[Path] = []
    temporary = file.with_name(f".{secrets.token_hex(8)}.gguf")
    try:
        missing_parents += (p for p in file.absolute().parents if not p.exists())
        file.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(file)
    except OSError as error:
        raise _unwritable(file, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        for parent in missing_parents:
            with suppress(OSError):  # not empty, because the block succeeded
                parent.rmdir()


def _unwritable(file: Path, error: OSError) -> OutputError:
    why = error.strerror or str(error)  # NumPy's error tells only how many bytes were written
    return OutputError(f"--gguf {file}: cannot be written ({why}); choose another place")


def _refusal(base: Base, why: str) -> BaseError:
    return BaseError(
        f"base {base.name}: it cannot be written as GGUF, because {why}; export it with --merged "
        "instead"
    )
