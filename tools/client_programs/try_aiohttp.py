# 200 jobs at once, half of them with Expect: 100-continue; a body in chunks; a batch.
import os
url = os.environ["URL"]
headers = {"Host": os.environ["HOST"], "Authorization": os.environ["AUTHORIZATION"]}
def pieces():
    for _ in range(20):
        yield b"x" * 50_000

import aiohttp, asyncio
async def main():
    async with aiohttp.ClientSession(headers=headers) as session:
        async def post(number):
            async with session.post(url + "/v1/jobs/echo", data=str(number), expect100=number % 2 == 0) as answer:
                assert (answer.status, await answer.text()) == (200, str(number))
        await asyncio.gather(*map(post, range(200)))
        async def stream():
            for piece in pieces():
                yield piece
        async with session.post(url + "/v1/jobs/echo", data=stream()) as answer:
            assert await answer.read() == b"".join(pieces())
        async with session.post(url + "/v1/batch/echo", data=b"1\n" * 100) as answer:
            assert [line async for line in answer.content] == [b"1\n"] * 100
asyncio.run(main())
print("ok")
