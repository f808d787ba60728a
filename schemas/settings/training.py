"""How a task's adapter is trained, gated, rolled out and announced."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from schemas.settings.section import NotNegative, Percentiles, Positive, Seconds, Section, Share, VariableName


class Trainer(Section, frozen=True):
    """How a task's adapter is trained. The defaults are those published with RGT."""

    enabled: bool = True
    base: str = ""  # folder of the student's base model; not needed where the student is local/NAME
    min_corrected_rows: Positive = 200  # new gold whose first attempt failed, since the last run
    max_age_hours: Annotated[float, Meta(ge=0)] = 0.0  # 0: off. A run also starts for corrected rows older than this,
    min_rows_at_age: Positive = 20  # where there are this many of them
    every_hours: Annotated[float, Meta(ge=0)] = 0.0  # 0: off. A run also starts this long after the last one
    daily_at: Annotated[str, Meta(pattern=r"^(([01]\d|2[0-3]):[0-5]\d)?$")] = ""  # "": off. And at this time, UTC
    quiet_s: Annotated[float, Meta(ge=0)] = 0.0  # a due run waits until no gold came for this long; 10 times it at most
    recipe: Literal["rgt", "isft", "sft", "rejection", "on_policy"] = "rgt"  # which rows, and what of each
    pair_weights: tuple[NotNegative, NotNegative] = (1.0, 1.0)  # loss weight of pair A and of pair B; 0 leaves it out
    continue_from: Literal["base", "incumbent"] = "base"  # where a run starts; either way it sees all gold so far
    objective: Literal["sft", "iw-sft", "iw-sft-step", "iw-sft-ema", "dft"] = "sft"  # how trained tokens are weighted
    weight_temperature: NotNegative | None = None  # of the log-ratio; unset: 10 for iw-sft-ema, else 1
    weight_min: NotNegative | None = None  # unset: 0.2 for iw-sft-step, else 0
    weight_max: NotNegative | None = None  # unset: 16 for iw-sft, 1.8 for iw-sft-step, 1000 for iw-sft-ema
    normalise_weights: bool | None = None  # to mean 1 over each batch; unset: only for iw-sft-ema
    ema_decay: Share = 0.9  # iw-sft-ema: what the average keeps of itself at each step
    quality: Literal["off", "top_sets", "score"] = "off"  # SFT(Q): how the judge's score decides what is repeated
    quality_percentiles: Percentiles = (90.0, 95.0, 98.0)  # top_sets: where each of the nested sets begins
    quality_sharpness: NotNegative = 4.0  # score: drawn in proportion to exp(sharpness x score), scores from 0 to 1
    target_modules: tuple[str, ...] = ()  # linear layers that get an adapter, e.g. "q_proj"; empty: all. Not published
    rank: Positive = 256
    alpha: Positive = 32
    learning_rate: Annotated[float, Meta(gt=0)] = 2e-4  # constant
    dropout: Share = 0.0
    epochs: Positive = 3  # the publication leaves it open
    batch_size: Positive = 16  # cases; the publication leaves it open
    strategy_weight: Annotated[float, Meta(ge=0)] = 1.0  # loss weight of the strategy tokens in pair B
    max_length: Positive = 4096
    # Rows with a larger share of their runs of 8 words in the holdout are left out, else the gate says nothing; 1: off
    max_overlap: Share = 0.5
    seed: int = 0
    threads: Annotated[int, Meta(ge=0)] = 0  # 0: torch decides
    share_prompts: bool = True  # the pairs of a case are forwarded in one row that holds their prompt once
    forward_tokens: Annotated[int, Meta(ge=0)] = 0  # of one forward pass; 0: 2048 on a CPU, 16384 on a GPU
    dtype: Literal["auto", "fp32", "bf16"] = "auto"  # of the base; auto: bf16 on a GPU. The adapter is in fp32
    gradient_checkpointing: bool = False  # a third more work for a fraction of the memory
    checkpoint_every_s: Annotated[float, Meta(ge=0)] = 300.0  # 0: off, and a killed run begins anew
    processes: Annotated[int, Meta(ge=0)] = 1  # that share a run's batches, one a GPU; 0: as many as there are GPUs
    # MB of base and tokenised rows that stay in memory between runs, so that a due one starts at once; 0: none, and no
    # torch before a run is due
    resident_mb: Annotated[int, Meta(ge=0)] = 1024
    share_gpu: bool = False  # the student's vLLM servers sleep while an adapter is trained


class Gate(Section, frozen=True):
    """When a candidate adapter replaces the incumbent."""

    min_holdout: Positive = 50  # fewer holdout cases: no decision, no promotion
    max_holdout: Positive = 200
    test: Literal["mcnemar", "bootstrap"] = "mcnemar"  # on passes, or on mean scores where the rubric is graded
    min_gain: Annotated[float, Meta(ge=-1, le=1)] = 0.0  # the candidate's gain, a share of 1, must exceed this
    significance: Annotated[float, Meta(gt=0, lt=1)] = 0.05  # a significant loss always refuses
    resamples: Annotated[int, Meta(ge=1000, le=1_000_000)] = 10_000  # of the bootstrap
    thinking: bool = False  # ask both with thinking on too; reported, never decisive
    thinking_tokens: Positive = 512  # what an answer may be longer by then
    report_examples: Annotated[int, Meta(ge=0, le=100)] = 8  # answers shown in gate.html; 0 keeps texts out of it
    promotion: Literal["auto", "manual", "shadow"] = "auto"  # shadow: judged, and never switched by itself


class Webhook(Section, frozen=True):
    """Who is told of promotions, rollbacks and refusals."""

    url_env: VariableName = ""  # name of the variable that holds the URL, which is a secret; "": nobody is told
    timeout_s: Seconds = 5.0  # of one attempt
    retries: Annotated[int, Meta(ge=0, le=10)] = 3  # with backoff; then the message is dropped and logged


class Rollout(Section, frozen=True):
    """How a promoted adapter reaches the task's servers, and how its first cases are watched."""

    servers: tuple[str, ...] = ()  # every vLLM server, where student.api_base is a load balancer before them
    canary_share: Annotated[float, Meta(ge=0, le=0.5)] = 0.1  # of cases, stays on the version before; 0: nobody watches
    watch_cases: Positive = 300  # canary cases without a significant drop, after which all go to the new version
    significance: Annotated[float, Meta(gt=0, lt=1)] = 0.01  # chance of ever taking back a version that is as good
    min_drop: Share = 0.02  # of the first-attempt pass rate; a smaller one takes nothing back
    timeout_s: Seconds = 60.0  # of one call to a server; loading an adapter reads it from disk
