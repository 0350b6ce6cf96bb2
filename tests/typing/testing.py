"""The test kit: an environment is a client, with its types."""

from supervisor import step, workflow
from supervisor.testing import Call, DatabaseEnvironment, Mock, TestEnvironment, crashes, replay_file


@step
async def charge(order_id: int, cents: int) -> str:
    return f"{order_id}:{cents}"


@workflow
async def checkout(order_id: int) -> str:
    return await charge(order_id, 1)


with TestEnvironment(seed=1, strict=True) as env:
    reveal_type(env)  # R: TestEnvironment
    reveal_type(env.start(checkout, 1).result())  # R: str
    reveal_type(env.mock(charge, returns="x"))  # R: Mock
    reveal_type(env.calls(charge))  # R: list[Call]
    env.start(checkout, "1")  # E: call-overload reportArgumentType
    env.mock(charge, returns=1, wrong=2)  # E: call-arg reportCallIssue
    env.crash(after=3)

with DatabaseEnvironment() as database:
    reveal_type(database.start(checkout, 1).result())  # R: str
    database.crash(after=3)  # E: call-arg reportCallIssue

for each in crashes():
    reveal_type(each)  # R: TestEnvironment


async def handler() -> None:
    run = await env.aio.start(checkout, 1)
    reveal_type(await run)  # R: str


reveal_type(replay_file("x"))  # R: int
calls: list[Call] = []
mock: Mock
