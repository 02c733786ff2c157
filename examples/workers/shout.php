#!/usr/bin/env php
<?php
// A worker in PHP: a JSON line a job in, a JSON line out. docs/workers.md says what stands in them.
while (($line = fgets(STDIN)) !== false) {
    $job = json_decode($line, true);
    $text = is_array($job['payload'] ?? null) ? ($job['payload']['text'] ?? null) : null;
    // The line begins with {"id":"…": a job that PHP cannot read fails by that.
    $id = substr($line, 7, 32);
    $answer = ['id' => $id, 'error' => $job === null ? json_last_error_msg() : 'text is missing'];
    if (is_string($text)) {
        $seen = (int) ($job['state']['seen'] ?? 0) + 1;
        $shouted = ['seen' => $seen, 'text' => strtoupper($text)];
        $answer = ['id' => $id, 'ok' => $shouted, 'set' => ['seen' => (string) $seen]];
    }
    fwrite(STDOUT, json_encode($answer) . "\n");
}
