#!/usr/bin/env perl
# A worker in Perl: a JSON line a job in, a JSON line out. docs/workers.md says what stands in them.
use strict;
use warnings;
use JSON::PP;

$| = 1;
my $json = JSON::PP->new->utf8->canonical;
while (my $line = <STDIN>) {
    # The line begins with {"id":"…": a job that Perl cannot read fails by that, and takes no worker along.
    my $job = eval { $json->decode($line) };
    print($json->encode({ id => substr($line, 7, 32), error => "$@" }), "\n"), next unless $job;
    my $payload = $job->{payload};
    my $text = ref $payload eq 'HASH' ? $payload->{text} : undef;
    my $answer = { id => $job->{id}, error => 'text is missing' };
    if (defined $text && !ref $text) {
        my $seen = ($job->{state}{seen} // 0) + 1;
        $answer = { id => $job->{id}, ok => { seen => $seen, text => uc $text }, set => { seen => "$seen" } };
    }
    print $json->encode($answer), "\n";
}
