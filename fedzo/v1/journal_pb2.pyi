from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Genesis(_message.Message):
    __slots__ = ("protocol_version", "numerics_version", "base_digest", "manifest", "distribution", "run_seed", "scope", "task", "rules")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_VERSION_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    DISTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    RUN_SEED_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    numerics_version: int
    base_digest: bytes
    manifest: _containers.RepeatedCompositeFieldContainer[Tensor]
    distribution: str
    run_seed: int
    scope: str
    task: Task
    rules: Rules
    def __init__(self, protocol_version: _Optional[int] = ..., numerics_version: _Optional[int] = ..., base_digest: _Optional[bytes] = ..., manifest: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., distribution: _Optional[str] = ..., run_seed: _Optional[int] = ..., scope: _Optional[str] = ..., task: _Optional[_Union[Task, _Mapping]] = ..., rules: _Optional[_Union[Rules, _Mapping]] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("name", "shape", "exponent", "max_abs")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    EXPONENT_FIELD_NUMBER: _ClassVar[int]
    MAX_ABS_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    exponent: int
    max_abs: int
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., exponent: _Optional[int] = ..., max_abs: _Optional[int] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("name", "tokenizer_digest", "max_length", "prompt", "response", "label_field", "labels", "candidates", "head", "choices", "references", "final_mark", "stop", "answer_tokens", "metrics", "objective", "group")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    FINAL_MARK_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    ANSWER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    name: str
    tokenizer_digest: bytes
    max_length: int
    prompt: str
    response: str
    label_field: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    candidates: _containers.RepeatedScalarFieldContainer[str]
    head: bool
    choices: str
    references: str
    final_mark: str
    stop: str
    answer_tokens: int
    metrics: _containers.RepeatedScalarFieldContainer[str]
    objective: str
    group: str
    def __init__(self, name: _Optional[str] = ..., tokenizer_digest: _Optional[bytes] = ..., max_length: _Optional[int] = ..., prompt: _Optional[str] = ..., response: _Optional[str] = ..., label_field: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ..., candidates: _Optional[_Iterable[str]] = ..., head: _Optional[bool] = ..., choices: _Optional[str] = ..., references: _Optional[str] = ..., final_mark: _Optional[str] = ..., stop: _Optional[str] = ..., answer_tokens: _Optional[int] = ..., metrics: _Optional[_Iterable[str]] = ..., objective: _Optional[str] = ..., group: _Optional[str] = ...) -> None: ...

class Rules(_message.Message):
    __slots__ = ("method", "rounds", "cohort", "quorum", "deadline_s", "directions", "local_steps", "batch_size", "epsilon", "learning_rate", "schedule", "evaluate_every", "attest_every", "guard_factor", "pool_size", "warmup_rounds", "momentum_window", "momentum_decay", "curvature_power", "buffer_size", "max_staleness", "scope", "clip", "aggregation", "tolerate", "calibrated")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    COHORT_FIELD_NUMBER: _ClassVar[int]
    QUORUM_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    DIRECTIONS_FIELD_NUMBER: _ClassVar[int]
    LOCAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_EVERY_FIELD_NUMBER: _ClassVar[int]
    ATTEST_EVERY_FIELD_NUMBER: _ClassVar[int]
    GUARD_FACTOR_FIELD_NUMBER: _ClassVar[int]
    POOL_SIZE_FIELD_NUMBER: _ClassVar[int]
    WARMUP_ROUNDS_FIELD_NUMBER: _ClassVar[int]
    MOMENTUM_WINDOW_FIELD_NUMBER: _ClassVar[int]
    MOMENTUM_DECAY_FIELD_NUMBER: _ClassVar[int]
    CURVATURE_POWER_FIELD_NUMBER: _ClassVar[int]
    BUFFER_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_STALENESS_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    AGGREGATION_FIELD_NUMBER: _ClassVar[int]
    TOLERATE_FIELD_NUMBER: _ClassVar[int]
    CALIBRATED_FIELD_NUMBER: _ClassVar[int]
    method: str
    rounds: int
    cohort: int
    quorum: int
    deadline_s: float
    directions: int
    local_steps: int
    batch_size: int
    epsilon: int
    learning_rate: float
    schedule: str
    evaluate_every: int
    attest_every: int
    guard_factor: float
    pool_size: int
    warmup_rounds: int
    momentum_window: int
    momentum_decay: float
    curvature_power: float
    buffer_size: int
    max_staleness: int
    scope: Scope
    clip: float
    aggregation: str
    tolerate: float
    calibrated: bool
    def __init__(self, method: _Optional[str] = ..., rounds: _Optional[int] = ..., cohort: _Optional[int] = ..., quorum: _Optional[int] = ..., deadline_s: _Optional[float] = ..., directions: _Optional[int] = ..., local_steps: _Optional[int] = ..., batch_size: _Optional[int] = ..., epsilon: _Optional[int] = ..., learning_rate: _Optional[float] = ..., schedule: _Optional[str] = ..., evaluate_every: _Optional[int] = ..., attest_every: _Optional[int] = ..., guard_factor: _Optional[float] = ..., pool_size: _Optional[int] = ..., warmup_rounds: _Optional[int] = ..., momentum_window: _Optional[int] = ..., momentum_decay: _Optional[float] = ..., curvature_power: _Optional[float] = ..., buffer_size: _Optional[int] = ..., max_staleness: _Optional[int] = ..., scope: _Optional[_Union[Scope, _Mapping]] = ..., clip: _Optional[float] = ..., aggregation: _Optional[str] = ..., tolerate: _Optional[float] = ..., calibrated: _Optional[bool] = ...) -> None: ...

class Scope(_message.Message):
    __slots__ = ("sparsity", "layers_per_direction", "lora_rank", "lora_alpha", "lora_targets", "virtual_tokens")
    SPARSITY_FIELD_NUMBER: _ClassVar[int]
    LAYERS_PER_DIRECTION_FIELD_NUMBER: _ClassVar[int]
    LORA_RANK_FIELD_NUMBER: _ClassVar[int]
    LORA_ALPHA_FIELD_NUMBER: _ClassVar[int]
    LORA_TARGETS_FIELD_NUMBER: _ClassVar[int]
    VIRTUAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    sparsity: int
    layers_per_direction: int
    lora_rank: int
    lora_alpha: float
    lora_targets: _containers.RepeatedScalarFieldContainer[str]
    virtual_tokens: int
    def __init__(self, sparsity: _Optional[int] = ..., layers_per_direction: _Optional[int] = ..., lora_rank: _Optional[int] = ..., lora_alpha: _Optional[float] = ..., lora_targets: _Optional[_Iterable[str]] = ..., virtual_tokens: _Optional[int] = ...) -> None: ...

class Record(_message.Message):
    __slots__ = ("round", "state_digest", "maxima", "enrolment", "commit", "void", "evaluation", "rollback", "end", "calibration")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MAXIMA_FIELD_NUMBER: _ClassVar[int]
    ENROLMENT_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    VOID_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    ROLLBACK_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    round: int
    state_digest: bytes
    maxima: _containers.RepeatedScalarFieldContainer[int]
    enrolment: Enrolment
    commit: Commit
    void: Void
    evaluation: Evaluation
    rollback: Rollback
    end: End
    calibration: Calibration
    def __init__(self, round: _Optional[int] = ..., state_digest: _Optional[bytes] = ..., maxima: _Optional[_Iterable[int]] = ..., enrolment: _Optional[_Union[Enrolment, _Mapping]] = ..., commit: _Optional[_Union[Commit, _Mapping]] = ..., void: _Optional[_Union[Void, _Mapping]] = ..., evaluation: _Optional[_Union[Evaluation, _Mapping]] = ..., rollback: _Optional[_Union[Rollback, _Mapping]] = ..., end: _Optional[_Union[End, _Mapping]] = ..., calibration: _Optional[_Union[Calibration, _Mapping]] = ...) -> None: ...

class Enrolment(_message.Message):
    __slots__ = ("first_index", "clients")
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    first_index: int
    clients: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, first_index: _Optional[int] = ..., clients: _Optional[_Iterable[str]] = ...) -> None: ...

class Entries(_message.Message):
    __slots__ = ("seeds", "coefficients")
    SEEDS_FIELD_NUMBER: _ClassVar[int]
    COEFFICIENTS_FIELD_NUMBER: _ClassVar[int]
    seeds: _containers.RepeatedScalarFieldContainer[int]
    coefficients: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, seeds: _Optional[_Iterable[int]] = ..., coefficients: _Optional[_Iterable[int]] = ...) -> None: ...

class Commit(_message.Message):
    __slots__ = ("entries", "learning_rate", "reports")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    entries: Entries
    learning_rate: float
    reports: _containers.RepeatedCompositeFieldContainer[ClientReport]
    def __init__(self, entries: _Optional[_Union[Entries, _Mapping]] = ..., learning_rate: _Optional[float] = ..., reports: _Optional[_Iterable[_Union[ClientReport, _Mapping]]] = ...) -> None: ...

class ClientReport(_message.Message):
    __slots__ = ("client", "examples", "loss", "projected_gradients", "ticket", "staleness")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    PROJECTED_GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    client: int
    examples: int
    loss: float
    projected_gradients: _containers.RepeatedScalarFieldContainer[float]
    ticket: int
    staleness: int
    def __init__(self, client: _Optional[int] = ..., examples: _Optional[int] = ..., loss: _Optional[float] = ..., projected_gradients: _Optional[_Iterable[float]] = ..., ticket: _Optional[int] = ..., staleness: _Optional[int] = ...) -> None: ...

class Void(_message.Message):
    __slots__ = ("reason", "reported", "diverged")
    REASON_FIELD_NUMBER: _ClassVar[int]
    REPORTED_FIELD_NUMBER: _ClassVar[int]
    DIVERGED_FIELD_NUMBER: _ClassVar[int]
    reason: str
    reported: _containers.RepeatedScalarFieldContainer[int]
    diverged: bool
    def __init__(self, reason: _Optional[str] = ..., reported: _Optional[_Iterable[int]] = ..., diverged: _Optional[bool] = ...) -> None: ...

class Evaluation(_message.Message):
    __slots__ = ("clients",)
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    clients: _containers.RepeatedCompositeFieldContainer[ClientEvaluation]
    def __init__(self, clients: _Optional[_Iterable[_Union[ClientEvaluation, _Mapping]]] = ...) -> None: ...

class ClientEvaluation(_message.Message):
    __slots__ = ("client", "examples", "loss", "metric")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    client: int
    examples: int
    loss: float
    metric: float
    def __init__(self, client: _Optional[int] = ..., examples: _Optional[int] = ..., loss: _Optional[float] = ..., metric: _Optional[float] = ...) -> None: ...

class Calibration(_message.Message):
    __slots__ = ("learning_rate", "reports")
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    learning_rate: float
    reports: _containers.RepeatedCompositeFieldContainer[ClientReport]
    def __init__(self, learning_rate: _Optional[float] = ..., reports: _Optional[_Iterable[_Union[ClientReport, _Mapping]]] = ...) -> None: ...

class Rollback(_message.Message):
    __slots__ = ("position", "entries", "learning_rate_scale", "reason")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_SCALE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    position: int
    entries: Entries
    learning_rate_scale: float
    reason: str
    def __init__(self, position: _Optional[int] = ..., entries: _Optional[_Union[Entries, _Mapping]] = ..., learning_rate_scale: _Optional[float] = ..., reason: _Optional[str] = ...) -> None: ...

class Start(_message.Message):
    __slots__ = ("position", "record_hash", "totals", "highest_rate", "client", "index")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    RECORD_HASH_FIELD_NUMBER: _ClassVar[int]
    TOTALS_FIELD_NUMBER: _ClassVar[int]
    HIGHEST_RATE_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    position: int
    record_hash: bytes
    totals: _containers.RepeatedScalarFieldContainer[int]
    highest_rate: float
    client: str
    index: int
    def __init__(self, position: _Optional[int] = ..., record_hash: _Optional[bytes] = ..., totals: _Optional[_Iterable[int]] = ..., highest_rate: _Optional[float] = ..., client: _Optional[str] = ..., index: _Optional[int] = ...) -> None: ...

class End(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
