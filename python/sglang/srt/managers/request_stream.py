"""The request stream of several ranks: what rank 0 receives, every rank receives, in the same step.

Scheduling depends on the stream and the scheduler's own state only, so ranks that read one stream take the same steps.
The messages travel as msgpack over the group, never as pickled objects.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from sglang.srt.managers.io_struct import Message, StartProfileReq, StopProfileReq, ToScheduler
from sglang.srt.utils.heartbeat import IDLE_SECONDS

if TYPE_CHECKING:
    from sglang.srt.distributed.process_group import ProcessGroup

RANK_0_ONLY = (StartProfileReq, StopProfileReq)  # a profile is of one rank, and changes no decision

Receive = Callable[[bool | float], list[Message]]


def leading(receive: Callable[[bool | float], list[Message]], group: "ProcessGroup") -> Receive:
    """Rank 0's receive: passes on what has come, also when that is nothing. RankLost when another rank has ended."""
    encode = msgspec.msgpack.Encoder().encode

    def receive_and_share(block: bool | float) -> list[Message]:
        messages = receive(block and min(block, IDLE_SECONDS))  # idle, it says so: it learns then that a rank has ended
        shared = [message for message in messages if not isinstance(message, RANK_0_ONLY)]
        group.broadcast_bytes(encode(shared) if shared else b"")
        return messages

    return receive_and_share


def following(group: "ProcessGroup") -> Receive:
    """Every other rank's receive. It always waits for rank 0, which speaks once a step. RankLost when it has ended."""
    decoder = msgspec.msgpack.Decoder(list[ToScheduler])

    def receive(block: bool | float) -> list[Message]:
        data = group.broadcast_bytes(None)
        return decoder.decode(data) if data else []

    return receive


def once_in(steps: int, receive: Receive) -> Receive:
    """`receive`, asked at one of `steps` calls while there is work to go on with, and always when there is none. Ranks
    skip the same calls, since they have work at the same time."""
    since = 0

    def receive_seldom(block: bool | float) -> list[Message]:
        nonlocal since
        since += 1
        if not block and since < steps:
            return []
        since = 0
        return receive(block)

    return receive_seldom
