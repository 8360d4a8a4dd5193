# Memory, descriptors or pages that a worker or the engine keeps of a request: answered,
# dropped by its client, or refused; and memory that grows with a stream's length.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;

plan skip_all => 'sanitized run' if $ENV{GLM_SANITIZED};

my $URI = '/v1/completions';
my $P = 'English: Where is the file? German:';

sub anon {
    my ($t, $pid) = @_;
    return $t->read_file("/proc/$pid/status") =~ /^RssAnon:\s+(\d+)/m ? $1 : die "no RssAnon of $pid\n";
}

sub fds {
    my ($pid) = @_;
    return scalar(() = glob "/proc/$pid/fd/*");
}

sub usage {
    my ($t) = @_;
    my %u;
    for ([ worker => ($t->workers)[0] ], [ engine => $t->{procs}{engine}{pid} ]) {
        my ($name, $pid) = @$_;
        $u{"$name, kB"} = anon($t, $pid);
        $u{"$name, descriptors"} = fds($pid);
    }
    return \%u;
}

# $before is after as many rounds as make allocators and caches settle.
sub flat {
    my ($t, $before, $slack, $name) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    $t->idle(10, "$name: nothing runs, no page is held");
    my $after;
    my $ok = wait_for {
        $after = usage($t);
        !grep { $after->{$_} > $before->{$_} + (/kB/ ? $slack : 0) } keys %$after;
    } 5;
    return ok($ok, "$name: memory and descriptors are flat")
        || diag(map { "$_: $before->{$_} -> $after->{$_}\n" } sort keys %$after);
}

my $plain = GLM::HTTP::format('POST', $URI, body => to_json({ prompt => 'a', temperature => 0, max_tokens => 1 }));
my $stream = GLM::HTTP::format('POST', $URI,
    body => to_json({ prompt => 'a', temperature => 0, max_tokens => 1, stream => TRUE }));
my $long = GLM::HTTP::format('POST', $URI,
    body => to_json({ prompt => $P, temperature => 0, max_tokens => 500, ignore_eos => TRUE, stream => TRUE }));

# Answers, on kept connections: the clients write ahead, one request behind the other

sub requests {
    my ($t, $n) = @_;
    my ($sent, $got) = (0, 0);
    my @c = map { $t->client } 1 .. 10;
    while ($sent < $n) {
        for my $c (@c) {
            $c->send(($plain, $stream)[ $sent++ % 2 ] x 10);
        }
        $sent += 9 * @c;
        for my $c (@c) {
            my $end = Time::HiRes::time() + 10;
            my $ended;
            while (($ended = () = $c->{in} =~ /\}\}\}$|\}\}\}(?=HTTP)|\[DONE\]\n\n\r\n0\r\n\r\n/g) < 10) {
                $c->fill($end) or last;
            }
            my $good = () = $c->{in} =~ m{^HTTP/1\.1 200 }mg;
            $good += () = $c->{in} =~ m{\}\}\}HTTP/1\.1 200 }g;
            $got += $good < $ended ? $good : $ended;
            $c->{in} = '';
        }
    }
    $_->close for @c;
    return $got;
}

sub cancels {
    my ($t, $n, $bytes) = @_;
    for my $i (1 .. $n) {
        my $c = $t->client;
        $c->send($bytes);
        $c->fill(Time::HiRes::time() + 1) if $i % 4 == 0;
        $i % 2 ? $c->reset : $c->close;
    }
}

my @bad = map { GLM::HTTP::format('POST', $URI, body => $_) } '{', '[]', '{"prompt":"a","n":0}',
    '{"prompt":"a","temperature":"x"}', "{\"prompt\":\"\xff\"}", '{"prompt":"a","stop":""}',
    '{"prompt":' . '[' x 100 . ']' x 100 . '}', '{"prompt":"a","model":"none"}',
    to_json({ prompt => 'file ' x 3000 }), '{"prompt":"a","logprobs":1e999}';

sub refusals {
    my ($t, $rounds) = @_;
    my $got = 0;
    for (1 .. $rounds) {
        my $c = $t->client;
        $c->send(join '', @bad);
        for (@bad) {
            my $r = $c->response(10) or last;
            $got++ if $r->{status} =~ /^4/;
        }
        $c->close;
    }
    return $got;
}

my $t = GLM::Test->new(log_level => 'error')->engine('--max-num-seqs', 16, '--max-queue', 1000);
$t->conf(http => 'access_log off; keepalive_requests 100000;')->run->ready;

requests($t, 1000);
cancels($t, 500, $long);
refusals($t, 50);
$t->idle(10, 'warm');
my $before = usage($t);
is(requests($t, 10_000), 10_000, '10,000 requests are answered');
flat($t, $before, 1024, '10,000 requests');
cancels($t, 10_000, $long);
flat($t, $before, 1024, '10,000 cancels');
is(refusals($t, 1000), 1000 * @bad, '1,000 rounds of bad input are refused');
flat($t, $before, 1024, '1,000 rounds of bad input');
is($t->complete(prompt => $P, temperature => 0)->{choices}[0]{text}, 'Wo ist die Datei?', 'and all is as before');
$t->finish;

# A long stream: what it holds after 1,000 tokens is what it holds after 20,000

my $f = GLM::Test->new(log_level => 'error')->fake('--max-seq', 30_000);
$f->conf(http => 'access_log off;')->run->ready;
my ($worker) = $f->workers;
for my $kind ({}, { logprobs => 5, return_token_ids => TRUE }) {
    my $c = $f->post($URI, { prompt => 'fake: tokens=20000', max_tokens => 20_000, stream => TRUE, %$kind }, start => 1);
    $c->read_head;
    my ($tokens, $at, $most) = (0, 0, 0);
    while (defined(my $piece = $c->read_some(10))) {
        $tokens += () = $piece =~ /t\d+ /g;
        $c->{res}{body} = '';
        if (!$at && $tokens >= 1000) {
            $at = anon($f, $worker);
        } elsif ($tokens > 1000) {
            my $now = anon($f, $worker);
            $most = $now if $now > $most;
        }
    }
    my $name = '20,000 tokens' . (%$kind ? ' with logprobs and ids' : '');
    cmp_ok($tokens, '>=', 20_000, "$name: all come");
    ok($at && $most <= $at + 256, "$name: the worker's memory does not grow") || diag("$at kB, then $most kB");
    $c->close;
}
$f->idle(5, 'nothing is left');

$f->done;
