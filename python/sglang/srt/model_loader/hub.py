"""Models by their names at the hub, OWNER/MODEL: which of their files are fetched, and what is said when that fails.

huggingface_hub fetches, into its cache, and knows its environment: HF_TOKEN, HF_HUB_OFFLINE, HF_ENDPOINT, HF_HOME. Only
files are fetched that are read here, never code; the weights last, when it is known that the model can be served.
"""

import dataclasses
import glob
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sglang.srt.configs import fields
from sglang.srt.configs.architectures import check_known
from sglang.srt.configs.config_file import architectures, check_plain, read_config, read_json
from sglang.srt.model_loader.checkpoint import INDEX, SINGLE, checkpoint_files, weight_names
from sglang.srt.server_args import ServerArgs

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# what is read of a folder beside its weights
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json",
    "chat_template.jinja", "additional_chat_templates/*.jinja",
)  # fmt: skip
CONFIG_FILES = (
    "config.json", "generation_config.json", "hf_quant_config.json", "adapter_config.json", "processor_config.json",
    "preprocessor_config.json", INDEX,
)  # fmt: skip

Tell = Callable[[str], None]


def is_hub_name(path: str) -> bool:
    """Whether it can only be the name of a model at the hub: there is no such folder, and it looks like one."""
    return HUB_NAME.fullmatch(path) is not None and not Path(path).exists()


def with_folders(args: ServerArgs, tell: Tell = lambda text: None) -> ServerArgs:
    """`args` with folders in place of names of the hub, whose files are fetched unless the cache has them. The served
    name stays the model's. `tell` hears what is fetched. Raises ValueError, in one sentence, for what can't be."""
    changes: dict[str, Any] = {}
    model, revision = args.model_path, args.revision
    if model is not None and is_hub_name(model):
        folder = fetch_model(model, revision, args, tell)
        changes |= {"model_path": folder, "served_model_name": args.served_model_name or model}
    elif revision is not None:
        tell(f"--revision {revision} has no effect: {model or 'the model in the package'} is not fetched from the hub")
    tokenizer = args.tokenizer_path
    if tokenizer is not None and is_hub_name(tokenizer):
        own = revision if tokenizer == model else None
        changes["tokenizer_path"] = fetch("--tokenizer-path", tokenizer, own, args.download_dir, TOKENIZER_FILES, tell)
    draft = args.speculative_draft_model_path
    if draft is not None and is_hub_name(draft):
        changes["speculative_draft_model_path"] = fetch_drafter(draft, args, tell)
    return dataclasses.replace(args, **changes)


def tokenizer_folder(flag: str, path: str, tell: Tell) -> str:
    """`path`, or the folder of the hub's tokenizer of this name. ValueError as with_folders()."""
    return fetch(flag, path, None, None, TOKENIZER_FILES, tell) if is_hub_name(path) else path


def fetch_model(name: str, revision: str | None, args: ServerArgs, tell: Tell) -> str:
    """The folder of a model's files; of its weights too unless they are made up. ValueError as with_folders()."""
    flag, wanted = "--model-path", (*CONFIG_FILES, *TOKENIZER_FILES)
    folder = fetch(flag, name, revision, args.download_dir, wanted, tell)
    raw = read_config(folder, flag)
    check_known(architectures({**raw, **args.json_model_override_args}))
    check_plain(raw, Path(folder))
    if args.load_format != "dummy":
        fetch_weights(flag, name, folder, args.download_dir)
    return folder


def fetch_drafter(name: str, args: ServerArgs, tell: Tell) -> str:
    flag = "--speculative-draft-model-path"
    folder = fetch(flag, name, args.speculative_draft_model_revision, args.download_dir, CONFIG_FILES, tell)
    raw = read_config(folder, flag)
    check_known(architectures(raw), drafter=True)
    check_plain(raw, Path(folder))
    if args.load_format != "dummy":
        fetch_weights(flag, name, folder, args.download_dir)
    return folder


def fetch_weights(flag: str, name: str, folder: str, cache: str | None) -> None:
    """The safetensors files that are read, of the version that `folder` is of."""
    has_index = (Path(folder) / INDEX).is_file()
    names = [SINGLE, *(weight_names(Path(folder)) if has_index else ())]
    if has_index:
        check_room(flag, name, Path(folder), names)
    fetch(flag, name, Path(folder).name, cache, [glob.escape(each) for each in names], lambda text: None)
    checkpoint_files(Path(folder))


def check_room(flag: str, name: str, folder: Path, names: list[str]) -> None:
    """ValueError where the disk can't hold the weights that are still to come: found out before, not hours later."""
    total = fields.mapping(read_json(folder / INDEX), "metadata").get("total_size")
    if not isinstance(total, int):  # some indices do not say
        return
    wanted = total - sum((folder / each).stat().st_size for each in names if (folder / each).is_file())
    if wanted > (free := shutil.disk_usage(folder).free):
        sizes = f"{wanted / 1e9:.1f} GB are to be fetched, and the disk of {folder} has {free / 1e9:.1f} GB free"
        raise ValueError(f"{flag} {name}: {sizes}; --download-dir or HF_HOME names another one")


def fetch(flag: str, name: str, revision: str | None, cache: str | None, files: Sequence[str], tell: Tell) -> str:
    """The folder, in the cache, that holds those of `files` that the hub's `name` has."""
    import httpx  # late, all of them: a server that is given a folder needs none
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError

    cache = cache or constants.HF_HUB_CACHE
    tell(f"{name} is not a folder: taken from {constants.ENDPOINT}, or from {cache} if it is there already")
    try:
        folder = huggingface_hub.snapshot_download(name, revision=revision, cache_dir=cache, allow_patterns=list(files))
        if Path(folder).is_dir():  # it is not where the model has none of the files
            return folder
        reason = f"it has none of the files that are read, like {files[0]}"
    except HFValidationError:
        reason = "that can be no model's name"
    except (OSError, ValueError, RuntimeError, AssertionError, httpx.HTTPError) as e:
        reason = problem(name, revision, cache, e)
    raise ValueError(f"{flag} {name} is not a folder, and as a model of the hub it can't be had: {reason}")


def problem(name: str, revision: str | None, cache: str, e: Exception) -> str:
    """What went wrong, as a person would say it."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{name}"
    match e:
        case errors.GatedRepoError():
            return f"{page} is given out on terms; accept them there, and put the key of that account into HF_TOKEN"
        case errors.RepositoryNotFoundError():
            return f"there is no {page}, or it is private and HF_TOKEN holds no key for it"
        case errors.RevisionNotFoundError():
            return f"{page} has no revision {revision or 'main'}"
        case errors.LocalEntryNotFoundError() if constants.HF_HUB_OFFLINE:
            return f"HF_HUB_OFFLINE is set, and {cache} does not hold all of it"
        case errors.LocalEntryNotFoundError():
            return f"{constants.ENDPOINT} can't be reached, and {cache} does not hold all of it"
        case errors.HfHubHTTPError() if e.response.status_code in (401, 403):
            return f"{constants.ENDPOINT} refuses the key in HF_TOKEN"
        case errors.HfHubHTTPError():
            return f"{constants.ENDPOINT} answers with {e.response.status_code}"
        case OSError(strerror=str(reason)):
            return f"{e.filename or cache}: {reason}"
    return " ".join(f"{type(e).__name__}: {e}".split())
