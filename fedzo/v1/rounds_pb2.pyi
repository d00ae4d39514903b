from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Purpose(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PURPOSE_UNSPECIFIED: _ClassVar[Purpose]
    PURPOSE_TRAIN: _ClassVar[Purpose]
    PURPOSE_EVALUATE: _ClassVar[Purpose]
    PURPOSE_ATTEST: _ClassVar[Purpose]
    PURPOSE_CALIBRATE: _ClassVar[Purpose]
PURPOSE_UNSPECIFIED: Purpose
PURPOSE_TRAIN: Purpose
PURPOSE_EVALUATE: Purpose
PURPOSE_ATTEST: Purpose
PURPOSE_CALIBRATE: Purpose

class GenesisRequest(_message.Message):
    __slots__ = ("totals", "name", "position", "record_hash")
    TOTALS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    RECORD_HASH_FIELD_NUMBER: _ClassVar[int]
    totals: bool
    name: str
    position: int
    record_hash: bytes
    def __init__(self, totals: _Optional[bool] = ..., name: _Optional[str] = ..., position: _Optional[int] = ..., record_hash: _Optional[bytes] = ...) -> None: ...

class GenesisReply(_message.Message):
    __slots__ = ("payload", "record_hash", "start", "first")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    RECORD_HASH_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    record_hash: bytes
    start: bytes
    first: Step
    def __init__(self, payload: _Optional[bytes] = ..., record_hash: _Optional[bytes] = ..., start: _Optional[bytes] = ..., first: _Optional[_Union[Step, _Mapping]] = ...) -> None: ...

class ClientMessage(_message.Message):
    __slots__ = ("join", "report")
    JOIN_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    join: Join
    report: Report
    def __init__(self, join: _Optional[_Union[Join, _Mapping]] = ..., report: _Optional[_Union[Report, _Mapping]] = ...) -> None: ...

class Join(_message.Message):
    __slots__ = ("protocol_version", "numerics_version", "name", "genesis_hash", "base_digest", "manifest_digest", "tokenizer_digest", "task", "position", "record_hash")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_VERSION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    GENESIS_HASH_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    RECORD_HASH_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    numerics_version: int
    name: str
    genesis_hash: bytes
    base_digest: bytes
    manifest_digest: bytes
    tokenizer_digest: bytes
    task: str
    position: int
    record_hash: bytes
    def __init__(self, protocol_version: _Optional[int] = ..., numerics_version: _Optional[int] = ..., name: _Optional[str] = ..., genesis_hash: _Optional[bytes] = ..., base_digest: _Optional[bytes] = ..., manifest_digest: _Optional[bytes] = ..., tokenizer_digest: _Optional[bytes] = ..., task: _Optional[str] = ..., position: _Optional[int] = ..., record_hash: _Optional[bytes] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("purpose", "round", "record_hash", "examples", "loss", "projected_gradients", "state_digest", "maxima", "diverged", "metric")
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    RECORD_HASH_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    PROJECTED_GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    STATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MAXIMA_FIELD_NUMBER: _ClassVar[int]
    DIVERGED_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    purpose: Purpose
    round: int
    record_hash: bytes
    examples: int
    loss: float
    projected_gradients: _containers.RepeatedScalarFieldContainer[float]
    state_digest: bytes
    maxima: _containers.RepeatedScalarFieldContainer[int]
    diverged: bool
    metric: float
    def __init__(self, purpose: _Optional[_Union[Purpose, str]] = ..., round: _Optional[int] = ..., record_hash: _Optional[bytes] = ..., examples: _Optional[int] = ..., loss: _Optional[float] = ..., projected_gradients: _Optional[_Iterable[float]] = ..., state_digest: _Optional[bytes] = ..., maxima: _Optional[_Iterable[int]] = ..., diverged: _Optional[bool] = ..., metric: _Optional[float] = ...) -> None: ...

class ServerMessage(_message.Message):
    __slots__ = ("welcome", "answers", "steps", "plan")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    answers: _containers.RepeatedCompositeFieldContainer[Answer]
    steps: _containers.RepeatedCompositeFieldContainer[Step]
    plan: Plan
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., answers: _Optional[_Iterable[_Union[Answer, _Mapping]]] = ..., steps: _Optional[_Iterable[_Union[Step, _Mapping]]] = ..., plan: _Optional[_Union[Plan, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("position",)
    POSITION_FIELD_NUMBER: _ClassVar[int]
    position: int
    def __init__(self, position: _Optional[int] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("outcome", "purpose", "round", "reason")
    class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        OUTCOME_UNSPECIFIED: _ClassVar[Answer.Outcome]
        OUTCOME_ACCEPTED: _ClassVar[Answer.Outcome]
        OUTCOME_REFUSED: _ClassVar[Answer.Outcome]
        OUTCOME_REBUILD: _ClassVar[Answer.Outcome]
    OUTCOME_UNSPECIFIED: Answer.Outcome
    OUTCOME_ACCEPTED: Answer.Outcome
    OUTCOME_REFUSED: Answer.Outcome
    OUTCOME_REBUILD: Answer.Outcome
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    outcome: Answer.Outcome
    purpose: Purpose
    round: int
    reason: str
    def __init__(self, outcome: _Optional[_Union[Answer.Outcome, str]] = ..., purpose: _Optional[_Union[Purpose, str]] = ..., round: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Plan(_message.Message):
    __slots__ = ("purpose", "round", "position", "learning_rate", "attest", "deadline_s")
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    ATTEST_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    purpose: Purpose
    round: int
    position: int
    learning_rate: float
    attest: bool
    deadline_s: float
    def __init__(self, purpose: _Optional[_Union[Purpose, str]] = ..., round: _Optional[int] = ..., position: _Optional[int] = ..., learning_rate: _Optional[float] = ..., attest: _Optional[bool] = ..., deadline_s: _Optional[float] = ...) -> None: ...

class Records(_message.Message):
    __slots__ = ("steps",)
    STEPS_FIELD_NUMBER: _ClassVar[int]
    steps: _containers.RepeatedCompositeFieldContainer[Step]
    def __init__(self, steps: _Optional[_Iterable[_Union[Step, _Mapping]]] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("record_hash", "payload", "commit")
    RECORD_HASH_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    record_hash: bytes
    payload: bytes
    commit: CommitReports
    def __init__(self, record_hash: _Optional[bytes] = ..., payload: _Optional[bytes] = ..., commit: _Optional[_Union[CommitReports, _Mapping]] = ...) -> None: ...

class CommitReports(_message.Message):
    __slots__ = ("round", "learning_rate", "clients", "examples", "losses", "projected_gradients", "tickets", "staleness")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    PROJECTED_GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    TICKETS_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    round: int
    learning_rate: float
    clients: _containers.RepeatedScalarFieldContainer[int]
    examples: _containers.RepeatedScalarFieldContainer[int]
    losses: _containers.RepeatedScalarFieldContainer[float]
    projected_gradients: _containers.RepeatedScalarFieldContainer[float]
    tickets: _containers.RepeatedScalarFieldContainer[int]
    staleness: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, round: _Optional[int] = ..., learning_rate: _Optional[float] = ..., clients: _Optional[_Iterable[int]] = ..., examples: _Optional[_Iterable[int]] = ..., losses: _Optional[_Iterable[float]] = ..., projected_gradients: _Optional[_Iterable[float]] = ..., tickets: _Optional[_Iterable[int]] = ..., staleness: _Optional[_Iterable[int]] = ...) -> None: ...

class FollowRequest(_message.Message):
    __slots__ = ("position", "record_hash")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    RECORD_HASH_FIELD_NUMBER: _ClassVar[int]
    position: int
    record_hash: bytes
    def __init__(self, position: _Optional[int] = ..., record_hash: _Optional[bytes] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("position", "record_hash", "genesis_hash", "round", "rounds", "ended", "halted", "purpose", "asked", "answered", "deadline_s", "loss", "awaited", "clients")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    RECORD_HASH_FIELD_NUMBER: _ClassVar[int]
    GENESIS_HASH_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    HALTED_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    ASKED_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    AWAITED_FIELD_NUMBER: _ClassVar[int]
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    position: int
    record_hash: bytes
    genesis_hash: bytes
    round: int
    rounds: int
    ended: bool
    halted: str
    purpose: Purpose
    asked: int
    answered: int
    deadline_s: float
    loss: float
    awaited: int
    clients: _containers.RepeatedCompositeFieldContainer[ClientStatus]
    def __init__(self, position: _Optional[int] = ..., record_hash: _Optional[bytes] = ..., genesis_hash: _Optional[bytes] = ..., round: _Optional[int] = ..., rounds: _Optional[int] = ..., ended: _Optional[bool] = ..., halted: _Optional[str] = ..., purpose: _Optional[_Union[Purpose, str]] = ..., asked: _Optional[int] = ..., answered: _Optional[int] = ..., deadline_s: _Optional[float] = ..., loss: _Optional[float] = ..., awaited: _Optional[int] = ..., clients: _Optional[_Iterable[_Union[ClientStatus, _Mapping]]] = ...) -> None: ...

class ClientStatus(_message.Message):
    __slots__ = ("name", "connected", "position")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    name: str
    connected: bool
    position: int
    def __init__(self, name: _Optional[str] = ..., connected: _Optional[bool] = ..., position: _Optional[int] = ...) -> None: ...
