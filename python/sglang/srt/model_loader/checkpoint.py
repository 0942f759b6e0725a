"""The safetensors files of a folder: which they are, which tensors they hold. Headers only, until one is asked for.

A checkpoint is untrusted input: shard names must be plain file names in the folder, and no other format is read.
"""

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from sglang.srt.configs.config_file import read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FLOAT_TYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}  # torch's names


@dataclass(frozen=True)
class TensorInfo:
    file: Path
    shape: tuple[int, ...]
    dtype: str  # safetensors' name: BF16, F32, I64, ...


def checkpoint_files(folder: Path) -> list[Path]:
    """The weight files: model.safetensors, which comes before an index as in transformers, or the shards the index
    names. ValueError says what is wrong."""
    files = [folder / name for name in weight_names(folder)]
    for file in files:
        if not file.is_file():
            found = sorted(
                p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".pt", ".pth", ".gguf")
            )
            raise ValueError(
                f"no weights: {file} does not exist; only safetensors are read "
                f"(weight files in the folder: {', '.join(found[:10]) or 'none'})"
            )
    return files


def weight_names(folder: Path) -> list[str]:
    """Names of the weight files, which need not be there yet. ValueError for an index that names something else."""
    if (folder / INDEX).is_file() and not (folder / SINGLE).is_file():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{folder / INDEX} has no weight_map")
        names = set(weight_map.values()) if all(isinstance(v, str) for v in weight_map.values()) else {None}
        for name in names:
            if name is None or Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
                raise ValueError(
                    f"{folder / INDEX} names {name!r} as a shard; a shard is a .safetensors file beside it"
                )
        return sorted(names)
    return [SINGLE]


def open_shard(file: Path) -> safe_open:
    """A shard, memory-mapped; ValueError in one line if it is damaged."""
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        size = file.stat().st_size
        raise ValueError(f"{file} ({size} bytes) is damaged or cut short: {error}") from None


def read_headers(files: list[Path]) -> dict[str, TensorInfo]:
    """name -> place, shape and type of every tensor. ValueError for a damaged file or a tensor held twice."""
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        with open_shard(file) as shard:
            for name in shard.keys():
                if name in tensors:
                    raise ValueError(f"tensor {name} is in both {tensors[name].file.name} and {file.name}")
                piece = shard.get_slice(name)
                tensors[name] = TensorInfo(file, tuple(piece.get_shape()), piece.get_dtype())
    return tensors


def stored_dtype(folder: Path) -> str | None:
    """torch's name of the type of the first float tensor, as transformers takes it; None if there are no weights."""
    if not (folder / SINGLE).is_file() and not (folder / INDEX).is_file():
        return None
    with open_shard(checkpoint_files(folder)[0]) as shard:
        kinds = (shard.get_slice(name).get_dtype() for name in shard.keys())
        return next((FLOAT_TYPES[kind] for kind in kinds if kind in FLOAT_TYPES), None)
