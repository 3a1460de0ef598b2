"""A call in a worker of Ray, and what Ray's words for trouble mean."""

import pickle
import sys
from collections.abc import Callable
from functools import lru_cache
from importlib import metadata
from pickle import UnpicklingError
from typing import Any, NamedTuple, NoReturn

import ray
from ray import exceptions

from quantum_async.core.errors import ClusterError, WorkerCrashedError, described
from quantum_async.engine.executors.envelope import RAISED, RETURNED
from quantum_async.executors import perform

_NOT_THERE = "failed to import on the worker"
_INTERRUPTED = "KeyboardInterrupt"
_NOTHING = b""


def perform_there(call: bytes, *values: Any) -> tuple[bytes, Any]:
    """Run a call in a worker of Ray.

    Ray passes bytes on as they are, which takes a fraction of the time.

    Args:
        call: What `called` gives.
        values: The values of its references, as they are kept.

    Returns:
        The pickled answer, and the value as it is kept: small ones as their pickle, large ones as
        themselves, and nothing if there is none. That is no exception, since of one that nobody
        fetches Ray would write to the log.

    Raises:
        ClusterError: If another version is installed here.
        KeyboardInterrupt: If the call was cancelled.
    """
    end = call.index(b"\n")
    version, mine = call[:end].decode(), installed()
    if version != mine and version and mine:
        raise ClusterError(
            f"quantum_async is {mine} in the Ray worker on {_host()} and {version} where the run "
            "is: install the same on the cluster"
        )
    if any(type(it) is bytes and not it for it in values):
        raise ClusterError("it was submitted with the result of a unit that failed")
    answer, value = perform(call[end + 1 :], [taken(it) for it in values], _size_of)
    if answer.how == RAISED and pickle.loads(answer.content)[0] == _INTERRUPTED:
        raise KeyboardInterrupt  # it is how Ray cancels, and Ray is to know
    if answer.how != RETURNED:
        return pickle.dumps(answer), _NOTHING
    return pickle.dumps(answer), answer.content or Pickled(value)


def called(blob: bytes) -> bytes:
    """Return what `perform_there` takes, of what `perform` takes."""
    return b"%s\n%s" % (installed().encode(), blob)


class Pickled:
    """A value that Ray need not pickle, and comes out as itself.

    If Ray could not, its own answer would be there all the same.

    Raises:
        Exception: What pickling raises.
    """

    def __init__(self, value: Any) -> None:
        self._buffers: list[pickle.PickleBuffer] = []
        self._content = ray.cloudpickle.dumps(
            value, protocol=5, buffer_callback=self._buffers.append
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self._content, self._buffers)


class _Itself(NamedTuple):
    """Holds a large value: bytes of the user's are not to be taken for a pickle."""

    value: Any


def _unpickled(content: bytes, buffers: list[Any]) -> _Itself:
    return _Itself(pickle.loads(content, buffers=buffers))


def taken(kept: Any) -> Any:
    """Return a value, of what is kept of it."""
    return kept.value if type(kept) is _Itself else pickle.loads(kept)


@lru_cache(maxsize=1)
def installed() -> str:
    """Return the version of this library; nothing if it came with a runtime environment."""
    try:
        return metadata.version("quantum_async")
    except metadata.PackageNotFoundError:
        return ""


def _host() -> str:
    return str(ray.util.get_node_ip_address())


def _size_of(value: Any) -> int:
    """Estimate how many bytes a value takes; arrays and frames say it themselves."""
    size = getattr(value, "nbytes", 0)
    return max(sys.getsizeof(value), size if isinstance(size, int) else 0)


# -- back here ------------------------------------------------------------------------------------


def is_cancellation(error: BaseException) -> bool:
    """Return whether a call has no answer because somebody cancelled it."""
    return isinstance(error, exceptions.TaskCancelledError)


def meant(unit: str, error: BaseException, hosts: Callable[[], list[str]]) -> BaseException:
    """Return in our words why Ray gave a call up.

    Args:
        unit: The unit's name.
        error: What Ray says.
        hosts: Gives the hosts of the cluster.
    """
    if isinstance(error, exceptions.NodeDiedError | exceptions.OutOfMemoryError):
        told = _first_line(error)
        why = "ran out of memory" if isinstance(error, exceptions.OutOfMemoryError) else "was lost"
        return WorkerCrashedError(
            f"the Ray worker of unit {unit!r} died while it ran, because its node {why}: {told}",
            unit,
            f"the node {why}",
        )
    if isinstance(error, exceptions.WorkerCrashedError):
        return _crashed(unit, hosts())
    cause: Any = error.cause if isinstance(error, exceptions.RayTaskError) else None
    if isinstance(cause, ClusterError):
        return ClusterError(f"unit {unit!r} did not run: {cause}")
    if cause is not None and _NOT_THERE in str(cause):
        return _not_installed(unit, cause)
    if cause is not None and not isinstance(cause, exceptions.RayError):
        # `perform` never raises: it is the result that Ray could not pickle.
        cause.add_note(
            f"raised in a Ray worker while the result of unit {unit!r} was pickled: return plain "
            "data, or run the unit with mode='thread'"
        )
        return cause  # type: ignore[no-any-return]
    trouble = ClusterError(
        f"Ray could not run unit {unit!r}: {type(error).__name__}: {_first_line(error)}"
    )
    trouble.__cause__ = error
    return trouble


def _crashed(unit: str, hosts: list[str]) -> WorkerCrashedError:
    place = f"on {hosts[0]}" if len(hosts) == 1 else f"on one of {', '.join(hosts)}"
    return WorkerCrashedError(
        f"the Ray worker {place} of unit {unit!r} died while it ran: the unit ended the process, "
        "or the machine did; Ray's logs of that node say more",
        unit,
        f"worker {place} was lost",
    )


def _not_installed(unit: str, cause: BaseException) -> ClusterError:
    reason = str(cause).rstrip().rpartition("\n")[2]
    return ClusterError(
        f"the Ray worker of unit {unit!r} cannot import quantum_async ({reason}): install it on "
        "the cluster, or send it along: RayExecutor(init={'runtime_env': "
        "{'py_modules': [quantum_async]}})"
    )


def meant_by(error: Exception) -> Exception:
    """Return the error of a value that cannot be fetched: of ours, if the cluster is to blame."""
    if not isinstance(error, exceptions.RayError):
        return error
    if isinstance(error, exceptions.RaySystemError):
        return UnpicklingError(str(error).rstrip().rpartition("\n")[2])
    return ClusterError(f"the cluster does not give the value any more: {_first_line(error)}")


def refuse(what: str, error: BaseException) -> NoReturn:
    """Raise why Ray cannot be connected to."""
    raise ClusterError(f"{what}: {described(error)}") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
