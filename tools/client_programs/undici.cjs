// 300 questions and 300 jobs, ten in a pipeline.
const assert = require("assert");
const url = process.env.URL;
// fetch takes no Host of ours: its own, an address, is one of those that are served.
const headers = process.env.AUTHORIZATION ? { authorization: process.env.AUTHORIZATION } : {};
const done = (work) => work().then(() => console.log("ok"), (error) => { console.error(error); process.exit(1); });

const { Client } = require("undici");
done(async () => {
    const client = new Client(url, { pipelining: 10 });
    const get = async (number) => {
        const path = number % 2 ? "/healthz" : "/v1/stats";
        const answer = await client.request({ path, method: "GET", headers });
        assert.equal(answer.statusCode, 200);
        await answer.body.text();
    };
    await Promise.all(Array.from({ length: 300 }, (_, number) => get(number)));
    const post = async (number) => {
        const body = String(number);
        const answer = await client.request({ path: "/v1/jobs/echo", method: "POST", body, headers, idempotent: true });
        assert.equal(await answer.body.text(), body);
    };
    await Promise.all(Array.from({ length: 300 }, (_, number) => post(number)));
    await client.close();
});
