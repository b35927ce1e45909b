"""A certification from its first probe to its certificate.

Each request is run uncut first (the reference); then cut at many places, one after the other and
many at once; and beside the latter uncut once more (the noise floor).
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import httpx

from dynaserve.certify.client import PoolClient, PoolFacts
from dynaserve.certify.evidence import objection, uncut_objection
from dynaserve.certify.grid import (
    Case,
    Subject,
    cases_of,
    groups_of,
    make_prompts,
    make_subject,
    shapes,
)
from dynaserve.certify.groups import Body
from dynaserve.certify.outcome import Comparison, Outcome, compare
from dynaserve.certify.tally import Certificate, NoiseFloor, Result, certificate
from shared.errors import RequestFailed

T = TypeVar("T")
Progress = Callable[[str, int, int], None]
"""(stage, done, of)"""

PROBE_SAMPLING: Body = {"temperature": 0, "logprobs": 1, "ignore_eos": True}


@dataclass(frozen=True)
class Options:
    """``logprob_tolerance`` is for the rounding that other chunk and batch shapes bring."""

    quick: bool = False
    seed: int = 1
    concurrency: int = 16
    logprob_tolerance: float = 1e-3


@dataclass
class Certification:
    """One run against one pool."""

    client: PoolClient
    options: Options
    progress: Progress = lambda stage, done, of: None
    references: dict[str, Outcome] = field(default_factory=dict)
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    async def run(self) -> Certificate:
        """Raises DynaServeError when the pool cannot cut or a reference cannot be made."""
        started_s = time.monotonic()
        facts = await self.client.facts()
        subjects = await self._make_subjects(facts.block_size)
        cases = await self._make_references(subjects, facts)
        alone = await self._run_cases("one by one", [c for c in cases if not c.in_company], 1)
        # Both at once: a quarter of the company is uncut.
        share = max(1, self.options.concurrency // 4)
        together, floor = await asyncio.gather(
            self._run_cases(
                "all at once",
                [case for case in cases if case.in_company],
                self.options.concurrency - share,
            ),
            self._noise_floor(subjects, share),
        )
        return certificate(
            alone + together,
            floor,
            self.options.logprob_tolerance,
            time.monotonic() - started_s,
            facts.versions,
        )

    # -- requests, uncut --------------------------------------------------------------------------

    async def _make_subjects(self, block_size: int) -> list[Subject]:
        """Probe every prompt greedily, and let the groups make requests from what comes out."""
        options = self.options
        wanted = shapes(block_size, options.quick)
        prompts = make_prompts(wanted, await self.client.vocabulary(), options.seed)
        subjects: list[Subject] = []
        for index, (shape, prompt) in enumerate(zip(wanted, prompts, strict=True)):
            name = f"p{index}"
            probing = Subject(name, "probe", prompt, shape.max_tokens, PROBE_SAMPLING)
            probe = await self._uncut(probing)
            for group in groups_of(index, options.quick):
                made = make_subject(group, probing, probe, options.seed + 100 * index)
                if made is not None:
                    subjects.append(made)
            self.progress("probes", index + 1, len(wanted))
        return subjects

    async def _make_references(self, subjects: Sequence[Subject], facts: PoolFacts) -> list[Case]:
        cases: list[Case] = []
        for done, each in enumerate(subjects):
            reference = self.references[each.name] = await self._uncut(each)
            cases += cases_of(
                each,
                reference,
                facts.block_size,
                len(cases),
                self.options.quick,
                facts.transports,
            )
            self.progress("references", done + 1, len(subjects))
        return cases

    async def _noise_floor(self, subjects: Sequence[Subject], concurrency: int) -> NoiseFloor:
        """The same requests uncut once more, in company and with prefix caching."""

        async def rerun(subject: Subject) -> Comparison:
            outcome = await self._uncut(subject, cache_salt=self._shared_salt(subject))
            return self._compare(subject, outcome)

        compared = await in_parallel([rerun(each) for each in subjects], concurrency)
        return NoiseFloor(
            reruns=len(compared),
            mismatches=sum(each.difference is not None for each in compared),
            max_logprob_difference=max((c.max_logprob_difference for c in compared), default=0.0),
        )

    async def _uncut(self, subject: Subject, cache_salt: str | None = None) -> Outcome:
        """An uncut run, by default one that nothing cached can help. Raises RequestFailed."""
        request_id = uuid.uuid4().hex
        body = request_body(subject, "never", cache_salt or self._own_salt(request_id))
        outcome = await self.client.complete(body, request_id)
        reason = uncut_objection(await self.client.evidence(request_id))
        if reason is not None:
            raise RequestFailed(f"{subject.name} was to run uncut: {reason}")
        return outcome

    # -- requests, cut ----------------------------------------------------------------------------

    async def _run_cases(self, stage: str, cases: Sequence[Case], limit: int) -> list[Result]:
        def count(done: int) -> None:
            self.progress(stage, done, len(cases))

        return await in_parallel([self._run_case(case) for case in cases], limit, count)

    async def _run_case(self, case: Case) -> Result:
        """Run it, compare it, and ask the pool whether it was what it should be."""
        request_id = uuid.uuid4().hex
        salt = self._shared_salt(case.subject) if case.caching else self._own_salt(request_id)
        body = request_body(case.subject, case.cut, salt, case.transport)
        try:
            outcome = await self.client.complete(body, request_id)
        except (RequestFailed, httpx.TransportError) as error:
            return Result(case, difference=f"it failed: {error!r}")
        compared = self._compare(case.subject, outcome)
        evidence = await self.client.evidence(request_id)
        handoff = evidence.handoff if evidence is not None else None
        return Result(
            case,
            difference=compared.difference,
            void=objection(case, evidence),
            handoff=handoff.outcome if handoff is not None else None,
            max_logprob_difference=compared.max_logprob_difference,
        )

    # -- small things -----------------------------------------------------------------------------

    def _compare(self, subject: Subject, outcome: Outcome) -> Comparison:
        return compare(self.references[subject.name], outcome, self.options.logprob_tolerance)

    def _own_salt(self, request_id: str) -> str:
        return f"{self.run_id}-{request_id}"

    def _shared_salt(self, subject: Subject) -> str:
        return f"{self.run_id}-{subject.name}"


def request_body(
    subject: Subject, cut: int | str, cache_salt: str, transport: str | None = None
) -> Body:
    """The request as JSON; requests with different salts share no cached prefix."""
    own: Body = {"dynaserve_cut": cut}
    if transport is not None:
        own["dynaserve_transport"] = transport
    return {
        "prompt": list(subject.prompt),
        "max_tokens": subject.max_tokens,
        "cache_salt": cache_salt,
        "vllm_xargs": own,
        **subject.sampling,
    }


async def in_parallel(
    work: Sequence[Coroutine[None, None, T]],
    limit: int,
    count: Callable[[int], None] = lambda done: None,
) -> list[T]:
    """Results in the order of ``work``, at most ``limit`` under way."""
    free = asyncio.Semaphore(limit)
    done = 0

    async def one(each: Coroutine[None, None, T]) -> T:
        nonlocal done
        async with free:
            result = await each
        done += 1
        count(done)
        return result

    return await asyncio.gather(*(one(each) for each in work))
