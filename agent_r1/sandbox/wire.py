"""SandboxFusion's protocol: its field names, defaults and statuses, mapped to our records.

Every existing client of SandboxFusion (its PyPI package, verl, hand-written POSTs) finds
the fields it knows with the meaning it knows. What this project can say beyond that
protocol travels in extra fields, which those clients ignore and our own client restores
exactly:

==================  ======================================================================
request             ``seed``, ``session``, ``last_expression``, ``limits`` (exact numbers;
                    the protocol's own fields only know whole MiB and two time-outs),
                    ``expect_instance`` (refuse when the session lived in another process)
command result      ``outcome`` (a :class:`~agent_r1.sandbox.base.RunStatus`), ``exit_code``
                    (only where ``return_code`` had to differ)
response            ``not_run`` (the outer result of a program that did not compile),
                    ``instance`` (the server process that answered)
==================  ======================================================================

The protocol has three words for the end of a command: ``Finished``, ``Error`` and
``TimeLimitExceeded``. ``Error`` makes the whole answer a ``SandboxError``, on which clients
retry, so it is kept for failures of the sandbox; a program that hits a memory or output
limit is ``Finished`` with a negative return code, and its answer is ``Failed``.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from agent_r1.errors import SandboxError
from agent_r1.sandbox.base import Limits, RunRequest, RunResult, RunStatus

Body = TypeVar("Body")
MIB = 1 << 20
KILLED_BY_LIMIT = -9
"""The return code shown to foreign clients for a program that a limit ended."""
DETAIL = {
    RunStatus.MEMORY_LIMIT: "the program reached its memory limit",
    RunStatus.OUTPUT_LIMIT: "the program reached its output limit",
    RunStatus.KILLED: "the program was killed by a signal",
}


class InvalidRequest(ValueError):
    """A body that is no request. ``location`` is the path of the offending field."""

    def __init__(self, message: str, location: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.location = location


class LimitsBody(Struct, omit_defaults=True):
    """Exact limits; an absent field falls back to the protocol's own or to the default."""

    wall_seconds: float | UnsetType = UNSET
    cpu_seconds: float | UnsetType | None = UNSET
    memory_bytes: int | UnsetType = UNSET
    output_bytes: int | UnsetType = UNSET
    processes: int | UnsetType = UNSET
    file_bytes: int | UnsetType = UNSET
    compile_seconds: float | UnsetType = UNSET


class RunCodeBody(Struct, kw_only=True, omit_defaults=True):
    """The body of ``POST /run_code``."""

    code: str
    language: str
    compile_timeout: float = 10.0
    run_timeout: float = 10.0
    memory_limit_MB: int = -1
    stdin: str | None = None
    files: dict[str, str | None] = {}
    fetch_files: list[str] = []
    # beyond SandboxFusion
    limits: LimitsBody | None = None
    seed: int | None = None
    session: str | None = None
    last_expression: bool = False
    expect_instance: str | None = None


class CommandBody(Struct, kw_only=True):
    """How one command (the compiler, the program) ended."""

    status: str
    execution_time: float | None = None
    return_code: int | None = None
    stdout: str | None = None
    stderr: str | None = None
    outcome: str | UnsetType = UNSET
    exit_code: int | UnsetType | None = UNSET


class RunCodeResponse(Struct, kw_only=True):
    """The answer of ``/run_code``."""

    status: str
    message: str = ""
    compile_result: CommandBody | None = None
    run_result: CommandBody | None = None
    executor_pod_name: str | None = None
    files: dict[str, str] = {}
    not_run: CommandBody | UnsetType = UNSET
    instance: str | UnsetType = UNSET


_request_decoder = msgspec.json.Decoder(RunCodeBody, strict=False)
_response_decoder = msgspec.json.Decoder(RunCodeResponse)
_encoder = msgspec.json.Encoder()


def encode(body: Any) -> bytes:
    """JSON of a body. Lone surrogates, which UTF-8 cannot carry, become ``?``."""
    try:
        return _encoder.encode(body)
    except UnicodeEncodeError:
        return _encoder.encode(_without_surrogates(msgspec.to_builtins(body)))


def decode_request(data: bytes) -> RunCodeBody:
    """Parse and validate; :class:`InvalidRequest` names the field."""
    return decode_body(data, _request_decoder)


def decode_body(data: bytes, decoder: msgspec.json.Decoder[Body]) -> Body:
    """Any body of the protocol, with errors that name the field."""
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise InvalidRequest(*_split(str(error))) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error


def to_request(body: RunCodeBody) -> RunRequest:
    """What an executor shall run. Raises :class:`InvalidRequest`."""
    return RunRequest(
        code=body.code,
        language=body.language,
        stdin=body.stdin or "",
        files=decode_files(body.files),
        fetch_files=tuple(safe_path(path, "fetch_files") for path in body.fetch_files),
        limits=_limits(body),
        seed=body.seed,
        session=body.session,
        last_expression=body.last_expression,
    )


def from_request(request: RunRequest, instance: str | None = None) -> RunCodeBody:
    """The body that asks for ``request``; readable for SandboxFusion itself, too."""
    limits, default = request.limits, Limits()
    return RunCodeBody(
        code=request.code,
        language=request.language,
        compile_timeout=limits.compile_seconds,
        run_timeout=limits.wall_seconds,
        memory_limit_MB=(
            -1 if limits.memory_bytes == default.memory_bytes else -(-limits.memory_bytes // MIB)
        ),
        stdin=request.stdin or None,
        files=dict(encode_files(request.files)),
        fetch_files=list(request.fetch_files),
        limits=LimitsBody(**{f.name: getattr(limits, f.name) for f in fields(limits)}),
        seed=request.seed,
        session=request.session,
        last_expression=request.last_expression,
        expect_instance=instance,
    )


def from_result(result: RunResult, instance: str | None = None) -> RunCodeResponse:
    """The answer for a program that ran, or did not compile."""
    compiled = result.compile is None or result.compile.status is RunStatus.SUCCESS
    success = compiled and result.status is RunStatus.SUCCESS
    return RunCodeResponse(
        status="Success" if success else "Failed",
        message=DETAIL.get(result.status, ""),
        compile_result=None if result.compile is None else _command(result.compile),
        run_result=_command(result) if compiled else None,
        files=encode_files(result.files),
        not_run=UNSET if compiled else _command(result),
        instance=UNSET if instance is None else instance,
    )


def to_result(data: bytes) -> tuple[RunResult, RunCodeResponse]:
    """The result in an answer, exactly as our server's executor gave it.

    From a server that knows only SandboxFusion's fields, the nearest status is derived.
    Raises :class:`~agent_r1.errors.SandboxError` for ``SandboxError`` and for no answer at all.
    """
    try:
        body = _response_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SandboxError(f"the sandbox answered something else than a result: {error}") from error
    if body.status not in ("Success", "Failed"):
        raise SandboxError(f"the sandbox failed: {body.message or body.status}")
    compile_result = None if body.compile_result is None else _result(body.compile_result)
    command = body.not_run if isinstance(body.not_run, CommandBody) else body.run_result
    if command is None:
        command = _uncompiled(body.compile_result)
    try:
        files = decode_files(dict(body.files))
    except InvalidRequest as error:
        raise SandboxError(f"the sandbox answered with files that are none: {error}") from error
    return _result(command, files, compile_result), body


def decode_files(files: Mapping[str, str | None]) -> dict[str, bytes]:
    """Base64 to bytes; ``None`` (a file that is only named) is left out as SandboxFusion does."""
    contents: dict[str, bytes] = {}
    for path, text in files.items():
        if text is None:
            continue
        try:
            contents[safe_path(path, "files")] = base64.b64decode(
                "".join(text.split()), validate=True
            )
        except (binascii.Error, ValueError) as error:
            if isinstance(error, InvalidRequest):
                raise
            raise InvalidRequest(f"file {path!r} is not base64: {error}", ("files",)) from error
    return contents


def encode_files(files: Mapping[str, bytes]) -> dict[str, str]:
    """Bytes to base64."""
    return {path: base64.b64encode(content).decode("ascii") for path, content in files.items()}


def safe_path(path: str, field: str) -> str:
    """Refuse what cannot be a path inside the working directory, whatever the executor does."""
    if not path or "\0" in path or ".." in path.split("/"):
        raise InvalidRequest(
            f"{path!r} is no path inside the working directory; give a relative path without '..'",
            (field,),
        )
    return path


def _limits(body: RunCodeBody) -> Limits:
    values: dict[str, Any] = {
        "wall_seconds": body.run_timeout,
        "compile_seconds": body.compile_timeout,
    }
    if body.memory_limit_MB > 0:
        values["memory_bytes"] = body.memory_limit_MB * MIB
    if body.limits is not None:
        exact = {name: getattr(body.limits, name) for name in body.limits.__struct_fields__}
        values |= {name: value for name, value in exact.items() if value is not UNSET}
    for name, value in values.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise InvalidRequest(f"{name} is {value}; it must be above 0", ("limits", name))
    return Limits(**values)


def _command(result: RunResult) -> CommandBody:
    timeout = result.status is RunStatus.TIMEOUT
    code = None if timeout else result.exit_code
    if not timeout and (code is None or (code == 0) != (result.status is RunStatus.SUCCESS)):
        code = 0 if result.status is RunStatus.SUCCESS else KILLED_BY_LIMIT
    return CommandBody(
        status="TimeLimitExceeded" if timeout else "Finished",
        execution_time=result.seconds,
        return_code=code,
        stdout=result.stdout,
        stderr=result.stderr,
        outcome=result.status.value,
        exit_code=UNSET if code == result.exit_code else result.exit_code,
    )


def _result(
    command: CommandBody,
    files: Mapping[str, bytes] | None = None,
    compile_result: RunResult | None = None,
) -> RunResult:
    exit_code = command.return_code
    if not isinstance(command.exit_code, UnsetType):
        exit_code = command.exit_code
    return RunResult(
        status=_status(command),
        stdout=command.stdout or "",
        stderr=command.stderr or "",
        exit_code=exit_code,
        seconds=command.execution_time or 0.0,
        files=files or {},
        compile=compile_result,
    )


def _status(command: CommandBody) -> RunStatus:
    if not isinstance(command.outcome, UnsetType):
        try:
            return RunStatus(command.outcome)
        except ValueError as error:
            raise SandboxError(
                f"the sandbox speaks of an outcome {command.outcome!r} that this version does not "
                "know; run the same version of agent-r1 on both sides"
            ) from error
    if command.status == "TimeLimitExceeded":
        return RunStatus.TIMEOUT
    if command.status != "Finished" or command.return_code is None:
        raise SandboxError(f"the sandbox failed: {command.stderr or command.status}")
    if command.return_code == 0:
        return RunStatus.SUCCESS
    return RunStatus.KILLED if command.return_code < 0 else RunStatus.ERROR


def _uncompiled(compile_result: CommandBody | None) -> CommandBody:
    """SandboxFusion says nothing about a program that did not compile but the compiler's words."""
    if compile_result is None:
        raise SandboxError("the sandbox answered without any result of a command")
    return CommandBody(
        status="Finished",
        return_code=compile_result.return_code or 1,
        stderr=compile_result.stderr,
        outcome=RunStatus.ERROR.value,
    )


def _split(message: str) -> tuple[str, tuple[str, ...]]:
    """``Expected `str`, got `int` - at `$.files[...]``` → (text, ("files",))."""
    text, _, path = message.partition(" - at `$")
    names = path.rstrip("`").replace("[...]", "").strip(".")
    return text, tuple(names.split(".")) if names else ()


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {_without_surrogates(k): _without_surrogates(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    return value
