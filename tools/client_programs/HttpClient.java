// 100 jobs at once with the default client; a batch in chunks.
import java.net.URI;
import java.net.http.*;
import java.util.*;
import java.util.concurrent.CompletableFuture;

class Main {
    static HttpRequest.Builder to(String path) {
        var request = HttpRequest.newBuilder(URI.create(System.getenv("URL") + path));
        var token = System.getenv("AUTHORIZATION");
        return token.isEmpty() ? request : request.header("Authorization", token);
    }

    public static void main(String[] arguments) throws Exception {
        // By default it asks for HTTP/2 by an upgrade.
        var client = HttpClient.newHttpClient();
        var texts = HttpResponse.BodyHandlers.ofString();
        var all = new ArrayList<CompletableFuture<Boolean>>();
        for (int number = 0; number < 100; number++) {
            var text = String.valueOf(number);
            var body = HttpRequest.BodyPublishers.ofString(text);
            all.add(client.sendAsync(to("/v1/jobs/echo").POST(body).build(), texts)
                .thenApply(answer -> answer.statusCode() == 200 && answer.body().equals(text)));
        }
        for (var one : all) if (!one.join()) throw new Exception("a job");
        // Without a length: in chunks.
        var bytes = "1\n".repeat(100).getBytes();
        var chunked = HttpRequest.BodyPublishers.ofInputStream(() -> new java.io.ByteArrayInputStream(bytes));
        var lines = client.send(to("/v1/batch/echo").POST(chunked).build(), HttpResponse.BodyHandlers.ofLines());
        if (lines.body().filter("1"::equals).count() != 100) throw new Exception("a batch");
        System.out.println("ok");
    }
}
