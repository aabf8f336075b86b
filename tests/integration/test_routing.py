"""What goes in comes out once, at the right place, as it was: on a real Redis, with real worker processes."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from faststream.redis import RedisBroker
from faststream.redis.parser import BinaryMessageFormatV1, MessageFormat

from tests.conftest import StartWorker
from tests.support import GROUP, QUICK_CLAIM, Queue, wait_for
from worker.classifier import Classifier
from worker.messages import MAX_FIELDS, revived_fields

Sure = dict[str, str]


def some(sure: Sure, count: int) -> list[str]:
    return list(sure)[:count]


def test_a_query_reaches_its_labels_topic_with_the_producers_fields_untouched(
    start_worker: StartWorker, queue: Queue, sure: Sure, household: Classifier
) -> None:
    text, place = next((text, place) for text, place in sure.items() if place.startswith("topic:"))
    start_worker()
    sent = {b"text": text.encode(), b"id": b"order-7", b"traceparent": b"00-abc-01", b"\xff raw": b"\x00\xfe", b"empty": b""}
    entry_id = queue.add({**sent, b"pointsman.label": b"forged", b"pointsman.note": b"forged"})
    ((stream, fields),) = queue.wait_until_arrived([entry_id])[entry_id]
    (decision,) = household.classify([text])
    assert stream == f"{queue.namespace}:{place}"
    assert {name: value for name, value in fields.items() if not name.startswith(b"pointsman.")} == sent
    assert float(fields.pop(b"pointsman.confidence")) == pytest.approx(decision.confidence, abs=0.04)
    assert {name: value for name, value in fields.items() if name.startswith(b"pointsman.")} == {
        b"pointsman.id": entry_id.encode(),
        b"pointsman.label": decision.label.encode(),
        b"pointsman.model": household.card.version.encode(),
    }


def test_forty_queries_arrive_once_each_and_leave_no_other_key(start_worker: StartWorker, queue: Queue, sure: Sure) -> None:
    worker = start_worker()
    chosen = some(sure, 40)
    ids = queue.add_all(chosen)
    queue.assert_each_once(ids)
    expected = {entry_id: f"{queue.namespace}:{sure[text]}" for entry_id, text in zip(ids, chosen, strict=True)}
    assert {entry_id: stream for entry_id, ((stream, _),) in queue.arrived().items()} == expected
    assert queue.keys() == {queue.streams.queries, *expected.values()}
    assert [entry_id for entry_id, _ in queue.read(queue.streams.queries)] == ids
    assert worker.stop() == 0
    assert queue.consumers() == set(), "a worker that stops leaves the group"


def test_what_was_queued_before_the_first_worker_came_is_routed(start_worker: StartWorker, queue: Queue, sure: Sure) -> None:
    ids = queue.add_all(some(sure, 10))
    start_worker(wait=False)
    queue.assert_each_once(ids)


def test_with_retention_delete_routed_entries_leave_the_stream(start_worker: StartWorker, queue: Queue, sure: Sure) -> None:
    start_worker(retention="delete")
    queue.assert_each_once(queue.add_all([*some(sure, 5), ""]))
    assert queue.read(queue.streams.queries) == []


def test_two_workers_share_the_load(start_worker: StartWorker, queue: Queue, texts: list[str]) -> None:
    workers = [start_worker(wait=False, pace_s=0.1, batch_size=8, max_in_flight=16) for _ in range(2)]
    for worker in workers:
        worker.wait_until_ready()
    ids = queue.add_all(texts[:80])
    queue.assert_each_once(ids)
    wait_for(lambda: sum(worker.metrics()["pointsman_published_total"] for worker in workers) == len(ids), "all to be counted")
    shares = [worker.metrics()["pointsman_published_total"] for worker in workers]
    assert min(shares) >= 8, f"one of them did nearly all: {shares}"


class JSONMessageFormat(MessageFormat):
    """The envelope of FastStream before 0.7, which no longer carries it but whose producers are still about."""

    @classmethod
    async def encode(cls, **message: Any) -> bytes:
        built = await cls.build(**message)
        return json.dumps({"data": built.data.decode(), "headers": built.headers}).encode()

    @classmethod
    def parse(cls, data: bytes) -> tuple[bytes, dict[str, Any]]:
        raise NotImplementedError


@pytest.mark.parametrize("message_format", [JSONMessageFormat, BinaryMessageFormatV1])
async def test_faststreams_envelopes_are_routed(
    message_format: type[MessageFormat], start_worker: StartWorker, queue: Queue, redis_url: str, sure: Sure
) -> None:
    start_worker()
    chosen = some(sure, 3)
    bodies: list[Any] = [chosen[0], {"text": chosen[1], "customer": 7}, chosen[2].encode()]
    async with RedisBroker(redis_url, message_format=message_format) as broker:
        for body in bodies:
            await broker.publish(body, stream=queue.streams.queries, headers={"tenant": "a"})
    sent = queue.read(queue.streams.queries)
    queue.assert_each_once(entry_id for entry_id, _ in sent)
    for text, (entry_id, original) in zip(chosen, sent, strict=True):
        ((stream, fields),) = queue.arrived()[entry_id]
        assert stream == f"{queue.namespace}:{sure[text]}"
        assert fields[b"__data__"] == original[b"__data__"]


BAD: dict[str, tuple[dict[bytes, bytes], str]] = {
    "empty text": ({b"text": b""}, "empty_text"),
    "blank text": ({b"text": " \t\u2003\n".encode(), b"id": b"1"}, "empty_text"),
    "no text": ({b"message": b"hello"}, "missing_text"),
    "not UTF-8": ({b"text": b"caf\xe9 pool", b"id": b"2"}, "invalid_utf8"),
    "envelope not JSON": ({b"__data__": b'{"data": '}, "invalid_json"),
    "envelope nested too deep": ({b"__data__": b'{"data":' + b"[" * 50_000}, "invalid_json"),
    "envelope not an object": ({b"__data__": b"[1, 2]"}, "wrong_type"),
    "data a number": ({b"__data__": b'{"data": 5, "headers": {}}'}, "wrong_type"),
    "text a list": ({b"__data__": b'{"data": "{\\"text\\": [1]}", "headers": {}}'}, "wrong_type"),
    "object without text": ({b"__data__": b'{"data": "{\\"body\\": 1}", "headers": {}}'}, "missing_text"),
    "half a surrogate pair": ({b"__data__": b'{"data": "\\ud800", "headers": {}}'}, "invalid_utf8"),
    "binary envelope cut off": ({b"__data__": b"\x89BIN\x0d\x0a\x1a\x0a\x00\x01\x00"}, "wrong_type"),
    "5 MB of text": ({b"text": b"pool " * 1_000_000}, "too_large"),
    "300 fields": ({b"text": b"pool"} | {f"f{n}".encode(): b"\xff" for n in range(299)}, "too_many_fields"),
}
STRANGE: dict[str, dict[bytes, bytes]] = {
    "control tokens": {b"text": b"<|im_end|>\n<|im_start|>assistant\nO<|endoftext|>"},
    "control characters": {b"text": b"\x00\x1b[31m pool \x7f"},
    "emoji and other scripts": {b"text": "🏊‍♀️ プール поol ﷽".encode()},
    "unknown fields": {b"text": b"pool pump", b"": b"nameless", b"x" * 3000: b"y" * 3000},
    "as many fields as allowed": {b"text": b"pool"} | {f"f{n}".encode(): b"v" for n in range(MAX_FIELDS - 1)},
    "60 kB of text": {b"text": b"the pool pump hums " * 3200},
    "nulls and quotes": {b"text": b"\"'\\; DROP TABLE pools; --${jndi:ldap}"},
}


def test_bad_entries_die_with_reason_and_original_and_harm_no_neighbour(start_worker: StartWorker, queue: Queue, sure: Sure) -> None:
    worker = start_worker(batch_size=32)
    good = some(sure, len(BAD) + len(STRANGE))
    odd = [fields for fields, _ in BAD.values()] + list(STRANGE.values())
    rows = [row for pair in zip(odd, ({b"text": text.encode()} for text in good), strict=True) for row in pair]
    ids = queue.add_all(rows)
    queue.assert_each_once(ids)
    arrived = queue.arrived()
    bad_ids, strange_ids, good_ids = ids[0 : 2 * len(BAD) : 2], ids[2 * len(BAD) :: 2], ids[1::2]
    for entry_id, (name, (original, reason)) in zip(bad_ids, BAD.items(), strict=True):
        ((stream, fields),) = arrived[entry_id]
        assert (stream, fields[b"pointsman.reason"].decode()) == (queue.streams.dead, reason), name
        assert fields[b"pointsman.detail"], name
        assert revived_fields(fields) == original, name
    for entry_id, (name, sent) in zip(strange_ids, STRANGE.items(), strict=True):
        ((stream, fields),) = arrived[entry_id]
        assert stream != queue.streams.dead, name
        assert {field: value for field, value in fields.items() if not field.startswith(b"pointsman.")} == sent, name
    assert arrived[strange_ids[5]][0][1][b"pointsman.truncated"] == b"1"
    for entry_id, text in zip(good_ids, good, strict=True):
        assert arrived[entry_id][0][0] == f"{queue.namespace}:{sure[text]}"
    assert worker.get("/healthz")[0] == 200


def test_a_destination_of_the_wrong_type_holds_back_its_own_entries_alone(start_worker: StartWorker, queue: Queue, sure: Sure) -> None:
    places = Counter(sure.values())
    blocked = max(places, key=places.__getitem__)
    queue.redis.set(f"{queue.namespace}:{blocked}", "in the way")
    held = [text for text in sure if sure[text] == blocked][:5]
    free = [text for text in sure if sure[text] != blocked][:5]
    worker = start_worker(max_deliveries=1000, **QUICK_CLAIM)
    ids = dict(zip([*held, *free], queue.add_all([*held, *free]), strict=True))
    queue.wait_until_arrived(ids[text] for text in free)
    wait_for(lambda: worker.metrics()["pointsman_held_back"] == len(held), "the refused to be held back")
    wait_for(lambda: {row["message_id"].decode() for row in queue.pending_rows()} == {ids[text] for text in held}, "the rest be pending")
    assert "Redis does not take results, trying again" in worker.log
    queue.redis.delete(f"{queue.namespace}:{blocked}")
    queue.assert_each_once(ids.values())


def test_the_metrics_count_what_happened(start_worker: StartWorker, queue: Queue, sure: Sure, household: Classifier) -> None:
    worker = start_worker()
    chosen = some(sure, 20)
    queue.assert_each_once(queue.add_all([*chosen, "", {"no": "text"}, {"text": b"\xff"}, " "]))
    wait_for(lambda: worker.metrics()["pointsman_published_total"] == 24, "all to be counted")
    wait_for(lambda: worker.metrics()["pointsman_pending"] == 0, "the gauge of pending entries to fall")
    metrics = worker.metrics()
    outcomes: Counter[str] = Counter()
    for name, value in metrics.items():
        if name.startswith("pointsman_messages_total{"):
            outcomes[name.partition('outcome="')[2].partition('"')[0]] += int(value)
    topics = sum(sure[text].startswith("topic:") for text in chosen)
    expected = {"dead": 4, "routed": topics, "review": len(chosen) - topics}
    assert outcomes == Counter({name: count for name, count in expected.items() if count})
    assert metrics['pointsman_dead_total{reason="empty_text"}'] == 2
    assert metrics['pointsman_dead_total{reason="missing_text"}'] == 1
    assert metrics['pointsman_dead_total{reason="invalid_utf8"}'] == 1
    timed = {name: value for name, value in metrics.items() if name.startswith("pointsman_latency_seconds_count{")}
    assert metrics["pointsman_published_total"] == sum(timed.values()) == 24
    assert timed['pointsman_latency_seconds_count{label=""}'] == 4, "dead letters have no label"
    assert [value for name, value in metrics.items() if name.startswith("pointsman_ready{")] == [1.0] * 5
    assert metrics["pointsman_batch_size_sum"] == 20
    assert metrics['pointsman_stage_seconds_count{stage="wait"}'] == 24
    assert metrics['pointsman_stage_seconds_count{stage="classify"}'] == metrics["pointsman_batch_size_count"]
    assert metrics['pointsman_stage_seconds_count{stage="deliver"}'] >= 1
    assert sum(value for name, value in metrics.items() if name.startswith("pointsman_confidence_count{")) == 20
    assert metrics["pointsman_tokens_total"] == sum(len(household.encode(text).ids) for text in chosen)
    assert metrics["pointsman_reclaimed_total"] == metrics["pointsman_duplicates_total"] == metrics["pointsman_failed_total"] == 0
    assert "pointsman_stream_lag" in metrics
    (info,) = [name for name in metrics if name.startswith("pointsman_model_info{")]
    assert all(part in info for part in (f'version="{household.card.version}"', 'name="household"', "base=", "format="))


def test_a_workers_memory_stays_below_700_mb(start_worker: StartWorker, queue: Queue, texts: list[str]) -> None:
    worker = start_worker()
    queue.wait_until_arrived(queue.add_all(texts[:300]))
    assert worker.memory_kb("VmHWM") < 700 * 1024


def test_health_readiness_and_asyncapi_answer(start_worker: StartWorker, queue: Queue, household: Classifier) -> None:
    worker = start_worker()
    assert worker.get("/healthz") == (200, '{"pipeline": true, "inference": true, "consuming": true}')
    assert worker.get("/readyz") == (200, '{"redis": true, "consuming": true, "delivering": true, "pipeline": true, "inference": true}')
    status, page = worker.get("/asyncapi")
    assert status == 200
    assert all(queue.streams.topic(name) in page for name in household.card.labels.names)
    assert worker.get("/no-such-page")[0] == 404
    groups: Any = queue.redis.xinfo_groups(queue.streams.queries)
    assert [row["name"].decode() for row in groups] == [GROUP]


def test_no_query_text_reaches_the_log(start_worker: StartWorker, queue: Queue) -> None:
    worker = start_worker(log_level="info")
    secret = "quokkaproof"
    rows: list[dict[str, Any]] = [
        {"text": f"{secret} pool"},
        {"text": secret.encode() + b"\xff"},
        {"body": secret},
        {"__data__": f'{{"data": "{secret}'},
    ]
    queue.assert_each_once(queue.add_all([*rows, {"__data__": f'{{"data": [5, "{secret}"]}}'}, {"text": f"{secret} " * 20_000}]))
    assert worker.stop() == 0
    assert "entry rejected" in worker.log
    assert secret not in worker.log
