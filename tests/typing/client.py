"""The client: arguments of a start are checked against the workflow's parameters, results keep their type."""

from collections.abc import Iterator

from supervisor import Client, Run, RunFailed, Transaction, step, workflow


@step(transactional=True)
def book(tx: Transaction, order_id: int) -> int:
    return order_id


@workflow
async def checkout(order_id: int, cents: int = 1) -> dict[str, int]:
    return {"booked": await book.aio(order_id) * cents}


@workflow
def nightly() -> None: ...


def ids() -> Iterator[int]:
    yield from range(3)


def key_of(item: object) -> str:
    return f"o-{item}"


with Client("postgresql:///", schema="supervisor") as client:
    run = client.start(checkout, 1, cents=2)
    reveal_type(client)  # R: Client
    reveal_type(run)  # R: Run[dict[str, int]]
    reveal_type(run.id)  # R: UUID
    reveal_type(run.key)  # R: str | None
    reveal_type(run.created)  # R: bool
    reveal_type(run.result())  # R: dict[str, int]
    reveal_type(run.result(timeout=60)["booked"])  # R: int
    reveal_type(run.status().status)  # R: str
    reveal_type(client.start(checkout.options(key="o-1", delay=3), order_id=1))  # R: Run[dict[str, int]]
    reveal_type(client.start(nightly).result(1.5))  # R: None
    # by name, nothing is known
    reveal_type(client.start("checkout", 1, 2))  # R: Run[Any]
    reveal_type(client.result(run.id))  # R: Any
    reveal_type(client.get(run.id))  # R: Run[Any]
    # many
    batch = client.start_many(checkout, ids(), key=key_of)
    reveal_type(batch)  # R: Batch[dict[str, int]]
    reveal_type(batch[0].result())  # R: dict[str, int]
    reveal_type([one.created for one in batch])  # R: list[bool]
    reveal_type(client.start_many("checkout", [1, 2]))  # R: Batch[Any]
    # operators
    reveal_type(client.pause(run, "why", actor="ann"))  # R: str
    reveal_type(client.operate_all("pause", "status = waiting", dry_run=True, each=lambda each: print(each.made)))  # R: Bulk
    client.operate_all("stop", "status = waiting")  # E: arg-type reportArgumentType
    reveal_type(client.resume(run))  # R: bool
    reveal_type(client.retry(run, "why"))  # R: Run[dict[str, int]]
    reveal_type(client.retry(run.id))  # R: Run[Any]
    reveal_type(client.fork(run, 2, workflow=checkout, input=1))  # R: Run[Any]
    # tokens
    reveal_type(client.complete("pgst_x", {"any": 1}))  # R: bool
    reveal_type(client.fail("pgst_x", ValueError("no"), retry=False))  # R: bool
    client.complete(3)  # E: arg-type reportArgumentType
    # asking
    reveal_type([info.run_id for info in client.list(10, workflow="checkout", status="failed")])  # R: list[UUID]
    reveal_type(client.list(filter="status = failed AND age < 1d", timeout=5)[0].status)  # R: str

    client.start(checkout, "1")  # E: call-overload reportArgumentType
    client.start(checkout)  # E: call-overload reportCallIssue
    client.start(checkout, 1, currency="EUR")  # E: call-arg reportCallIssue
    client.start(checkout.options(key="o-1"), "1")  # E: call-overload reportArgumentType
    client.start(checkout.options(key=1), 1)  # E: arg-type reportArgumentType
    client.start(book, 1)  # E: call-overload reportArgumentType
    client.start_many(checkout, 3)  # E: call-overload reportArgumentType
    client.skip(run, 0)  # E: call-arg reportCallIssue
    client.edit_retry(run, 0, max_attempts="3")  # E: arg-type reportArgumentType
    client.list(limit="all")  # E: arg-type reportArgumentType
    client.list(filter=3)  # E: arg-type reportArgumentType
    client.get(3)  # E: arg-type reportArgumentType
    receipt: str = client.start(checkout, 1).result()  # E: assignment reportAssignmentType
    run.result(timeout="1 min")  # E: arg-type reportArgumentType


def failure(run: Run[int]) -> int:
    try:
        return run.result()
    except RunFailed as error:
        reveal_type(error.__cause__)  # R: BaseException | None
        reveal_type(error.code)  # R: str
        return run.id  # E: return-value reportReturnType
