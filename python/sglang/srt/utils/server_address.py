"""Where a running server is: the flags of every tool that asks one, spelt alike, and the address they make."""

import argparse
from types import SimpleNamespace
from urllib.parse import urlsplit

PORT = 30000  # the server's own default


def add_server_flags(parser: argparse._ActionsContainer, port_help: str = f"({PORT})") -> None:
    """--base-url (or --url), --host and --port, for server_url()."""
    parser.add_argument("--base-url", "--url", type=_url, metavar="URL", help="instead of --host and --port")
    parser.add_argument("--host", default="127.0.0.1", help="of the server (%(default)s)")
    parser.add_argument("--port", type=_port, metavar="N", help=port_help)


def server_url(args: argparse.Namespace | SimpleNamespace, default_port: int = PORT) -> str:
    """http://HOST:PORT of add_server_flags' values. A host may have its http:// already, as in upstream's tests."""
    if args.base_url is not None:
        return args.base_url.rstrip("/")
    scheme, _, host = args.host.rpartition("://")
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"{scheme or 'http'}://{host}:{args.port or default_port}"


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, a bracket that is not closed
        fine = False
    if not fine:
        raise argparse.ArgumentTypeError(f"{text}: http://HOST:PORT is expected")
    return text


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{text}: 1 to 65535 are possible")
    return int(text)
