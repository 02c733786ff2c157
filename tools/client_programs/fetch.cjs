// 100 jobs by fetch; a batch whose body is a stream.
const assert = require("assert");
const url = process.env.URL;
// fetch takes no Host of ours: its own, an address, is one of those that are served.
const headers = process.env.AUTHORIZATION ? { authorization: process.env.AUTHORIZATION } : {};
const done = (work) => work().then(() => console.log("ok"), (error) => { console.error(error); process.exit(1); });

done(async () => {
    for (let number = 0; number < 100; number++) {
        const answer = await fetch(url + "/v1/jobs/echo", { method: "POST", body: String(number), headers });
        assert.equal(answer.status, 200);
        assert.equal(await answer.text(), String(number));
    }
    const lines = new ReadableStream({ start(to) { for (let n = 0; n < 100; n++) to.enqueue("1\n"); to.close(); } });
    const body = lines.pipeThrough(new TextEncoderStream());
    const answer = await fetch(url + "/v1/batch/echo", { method: "POST", body, duplex: "half", headers });
    let text = "";
    for await (const piece of answer.body.pipeThrough(new TextDecoderStream())) text += piece;
    assert.equal(text, "1\n".repeat(100));
});
