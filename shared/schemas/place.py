"""Conversation gateway <-> global scheduler: where a request runs and where it is cut."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue, TypeAdapter

from shared.schemas.handoff import Transport
from shared.schemas.message import InstanceId, Message, Part
from shared.schemas.request import GenerationRequest

AdmissionMode = Literal["refuse", "queue"]
RefusalCode = Literal["overloaded", "slo", "no_instance", "invalid"]


class Place(Message):
    """Ask for a placement. Asking again with the same id and epoch gets the same plan."""

    kind: Literal["place"] = "place"
    request: GenerationRequest
    epoch: int = Field(ge=1, description="raised when the rest of a request is placed anew")
    gateway_id: InstanceId
    forced_cut: int | None = Field(default=None, ge=1)
    forced_transport: Transport | None = Field(
        default=None, description="of the handoff, if the request is cut; None: the best there is"
    )
    avoid: list[InstanceId] = Field(
        default_factory=list, description="instances that just failed it"
    )
    answer_by_s: float | None = Field(
        default=None, description="unix time after which the gateway listens no more"
    )


class Prediction(Part):
    """What the policy expects of one way to run the request."""

    ttft_s: float
    tbt_s: float
    cost: float = Field(description="the policy's objective; lower is better")


class Candidate(Part):
    """One way the policy weighed: instances, cut (None: uncut) and what it expects."""

    alpha_id: InstanceId
    beta_id: InstanceId | None = None
    cut: int | None = None
    prediction: Prediction


class Plan(Message):
    """The answer: where the segments went. ``beta_id`` and ``cut`` are None when uncut."""

    kind: Literal["plan"] = "plan"
    request_id: str
    epoch: int
    scheduler_id: InstanceId
    policy: str
    alpha_id: InstanceId
    beta_id: InstanceId | None = None
    cut: int | None = None
    coordinator_id: InstanceId | None = None
    handoff_id: str | None = None
    reason: str
    control_group: bool = False
    traffic_class: str = "default"
    predicted_output_tokens: float | None = None
    predicted_cached_tokens: int = Field(
        default=0, description="prompt tokens the scheduler believed alpha to hold"
    )
    unsplit: Prediction | None = None
    disaggregated: Prediction | None = None
    chosen: Prediction | None = Field(
        default=None, description="of what is done; None for a forced cut nobody weighed"
    )
    unforced: Candidate | None = Field(
        default=None, description="what the policy would have done, where the request forced a cut"
    )
    candidates: list[Candidate] = Field(default_factory=list)
    decision_s: float = Field(default=0.0, description="time the policy took")


class PlaceRefused(Message):
    """No placement. 'overloaded' (too much waits already) and 'slo' (no placement would be in time)
    carry the wait until asking again may help; 'invalid' names the parameter."""

    kind: Literal["place_refused"] = "place_refused"
    request_id: str
    epoch: int
    code: RefusalCode
    message: str
    param: str | None = None
    retry_after_s: float | None = None
    predicted_ttft_s: float | None = Field(default=None, description="of the best placement")


class SetPolicy(Message):
    """Switch every scheduler to another policy; answered by ControlReply when asked as a request.

    What is placed already stays where it is.
    """

    kind: Literal["set_policy"] = "set_policy"
    policy: str
    options: dict[str, JsonValue] = Field(
        default_factory=dict, description="arguments of the policy, by name"
    )


class SetAdmission(Message):
    """What every scheduler does with requests that no placement can serve in time; answered by
    ControlReply when asked as a request."""

    kind: Literal["set_admission"] = "set_admission"
    default: AdmissionMode
    classes: dict[str, AdmissionMode] = Field(
        default_factory=dict, description="by SLO class, where it differs from the default"
    )


PlaceReply = Annotated[Plan | PlaceRefused, Field(discriminator="kind")]
PLACE_REPLY: TypeAdapter[PlaceReply] = TypeAdapter(PlaceReply)
SchedulerControl = Annotated[SetPolicy | SetAdmission, Field(discriminator="kind")]
SCHEDULER_CONTROL: TypeAdapter[SchedulerControl] = TypeAdapter(SchedulerControl)
PLACE: TypeAdapter[Place] = TypeAdapter(Place)
