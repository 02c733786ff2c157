# 20 jobs over a kept connection, a body in chunks, an upload that is refused, a batch.
import os
url = os.environ["URL"]
headers = {"Host": os.environ["HOST"], "Authorization": os.environ["AUTHORIZATION"]}
def pieces():
    for _ in range(20):
        yield b"x" * 50_000

import httpx
with httpx.Client(headers=headers, timeout=20) as client:
    # Its heads and bodies are packets of their own, and the second one waits for the kernel's late word about the first.
    for number in range(20):
        answer = client.post(url + "/v1/jobs/echo", content=str(number))
        assert (answer.status_code, answer.text) == (200, str(number)), answer.text
    assert client.post(url + "/v1/jobs/echo", content=pieces()).content == b"".join(pieces())
    assert client.post(url + "/v1/jobs/nobody", content=b"x" * 10_000_000).json()["code"] == "unknown_handler"
    with client.stream("POST", url + "/v1/batch/echo", content=b"1\n" * 100) as answer:
        assert list(answer.iter_lines()) in (["1"] * 100, ["1\n"] * 100)
print("ok")
