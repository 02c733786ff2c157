// 200 jobs over four kept connections, half of them in chunks.
const assert = require("assert"), http = require("http");
const url = process.env.URL;
const headers = process.env.AUTHORIZATION ? { authorization: process.env.AUTHORIZATION } : {};
const done = (work) => work().then(() => console.log("ok"), (error) => { console.error(error); process.exit(1); });

const agent = new http.Agent({ keepAlive: true, maxSockets: 4 });
const post = (number) => new Promise((resolve, reject) => {
    const options = { method: "POST", agent, headers: { ...headers, host: process.env.HOST } };
    const request = http.request(url + "/v1/jobs/echo", options, (answer) => {
        let text = "";
        const port = answer.socket.localPort;
        answer.on("data", (piece) => { text += piece; });
        answer.on("end", () => { assert.equal(text, String(number)); resolve(port); });
    });
    request.on("error", reject);
    // Every other one without a length, in chunks.
    if (number % 2) request.write(String(number)); else request.setHeader("content-length", String(number).length);
    request.end(number % 2 ? undefined : String(number));
});
done(async () => {
    const ports = await Promise.all(Array.from({ length: 200 }, (_, number) => post(number)));
    assert.equal(new Set(ports).size, 4, "connections are not kept");
    agent.destroy();
});
