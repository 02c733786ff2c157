# 100 jobs over a kept connection, a body in chunks, an upload that is refused, a batch.
import os
url = os.environ["URL"]
headers = {"Host": os.environ["HOST"], "Authorization": os.environ["AUTHORIZATION"]}
def pieces():
    for _ in range(20):
        yield b"x" * 50_000

import requests
with requests.Session() as session:
    session.headers.update(headers)
    for number in range(100):
        answer = session.post(url + "/v1/jobs/echo", data=str(number))
        assert (answer.status_code, answer.text) == (200, str(number)), answer.text
    assert session.post(url + "/v1/jobs/echo", data=pieces()).content == b"".join(pieces())
    assert session.post(url + "/v1/jobs/nobody", data=b"x" * 10_000_000).json()["code"] == "unknown_handler"
    with session.post(url + "/v1/batch/echo", data=b"1\n" * 100, stream=True) as answer:
        assert list(answer.iter_lines()) == [b"1"] * 100
print("ok")
