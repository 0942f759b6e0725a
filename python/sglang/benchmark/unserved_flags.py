"""Flags of upstream's bench_serving that ask for what is not measured here. They are refused by name, never ignored."""

import argparse

_TEXT = "only text is measured; leave it out"
_LORA = "LoRA adapters are not served; leave it out"
_TRACE = "it is for datasets of traces, which are not served; leave it out"
_ROLES = "prefill and decode run in one server; leave it out"

UNSERVED: dict[str, str] = {
    "--image-count": _TEXT,
    "--image-resolution": _TEXT,
    "--random-image-count": _TEXT,
    "--image-format": _TEXT,
    "--image-content": _TEXT,
    "--lora-name": _LORA,
    "--lora-request-distribution": _LORA,
    "--lora-zipf-alpha": _LORA,
    "--dataset-offset": _TRACE,
    "--agentic-max-turns": _TRACE,
    "--speed-bench-category": "speed-bench needs the hub; leave it out",
    "--speed-bench-output-len": "speed-bench needs the hub; leave it out",
    "--use-trace-timestamps": _TRACE,
    "--mooncake-slowdown-factor": _TRACE,
    "--mooncake-num-rounds": _TRACE,
    "--mooncake-workload": _TRACE,
    "--pd-separated": _ROLES,
    "--profile-prefill-url": _ROLES,
    "--profile-decode-url": _ROLES,
    "--fake-prefill": _ROLES,
    "--profile-stages": "--profile-by-stage records both; leave it out",
    "--return-routed-experts": "the server does not tell them; leave it out",
    "--gsp-fast-prepare": "nothing is counted beforehand that takes long; leave it out",
    "--gsp-num-turns": "each prompt is one turn; leave it out",
}


def add_unserved(parser: argparse.ArgumentParser) -> None:
    for flag, reason in UNSERVED.items():
        parser.add_argument(flag, nargs="*", action=_Refuse, help=argparse.SUPPRESS, reason=reason)


class _Refuse(argparse.Action):
    def __init__(self, *args, reason: str, **kwargs):
        super().__init__(*args, **kwargs)
        self.reason = reason

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        parser.error(f"{option_string} is not supported: {self.reason}")
