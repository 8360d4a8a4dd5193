# An engine that is not there, dies, or is replaced: clients that hang or get half an
# answer without a word, and workers that need a reload to find the next one.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;
use Time::HiRes qw(sleep);

my $URI = '/v1/completions';
my $t = GLM::Test->new(absent => 1, workers => 2)->fake('--max-queue', 100)->run;

sub unavailable {
    my ($r, $name) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    check_error($r, 503, $name, type => 'service_unavailable_error', code => qr/^(engine_|server_is_overloaded)/);
    like($r->{headers}{'retry-after'} // 'absent', qr/^[1-9]\d?$/, "$name: Retry-After");
}

# Absent at the start

for my $p ($URI, '/tokenize', '/detokenize') {
    unavailable($t->post($p, $p eq '/detokenize' ? { tokens => [ 65 ] } : { prompt => 'a' }), "engine absent: $p");
}
unavailable($t->get('/health'), 'engine absent: /health');
unavailable($t->get('/v1/models'), 'engine absent: /v1/models');
unavailable($t->post($URI, { prompt => 'a', stream => TRUE }), 'engine absent: a stream');
check_error($t->post($URI, '{'), 400, 'what is wrong without an engine is told', param => undef);
is($t->get('/version')->{status}, 200, '/version needs no engine');
is($t->stat('engine_up'), 0, 'engine_up 0');
is($t->get('/plain')->{body}, "plain\n", 'other locations are served');

# It comes, without a reload

my @workers = $t->workers;
$t->start_engine;
$t->ready(5);
is_deeply([ $t->workers ], \@workers, 'by the same workers');
ok((wait_for { !grep { $t->post($URI, { prompt => 'fake: tokens=2' })->{status} != 200 } 1 .. 6 } 5), 'all of them');
ok($t->wait_stat('engine_up', 1, 5), 'engine_up 1');

# It dies: in mid-stream, before the first token, before ACCEPTED

my %words = (kill => 'tokens=2000 delay=20', die => 'tokens=2000 delay=20 dieat=5');
for my $how (qw(kill die)) {
    my $s = $t->post($URI, { prompt => "fake: $words{$how}", max_tokens => 2000, stream => TRUE }, start => 1);
    is(($s->read_head // {})->{status}, 200, "$how: a stream");
    $s->event for 1 .. 3;
    my @wait = map { $t->post($URI, { prompt => "fake: $_", max_tokens => 5 }, start => 1) }
        'first=60000', 'accept=60000', 'tokens=500 delay=50';
    wait_for { ($t->stat('num_requests_running') // 0) >= 2 } 2 if $how eq 'kill';
    if ($how eq 'kill') {
        $t->kill_engine;
    } else {
        $t->expect_end('engine');
        ok($t->reap('engine', 10), 'die: it does');
    }
    my @e = eval { data_events($s->events) };
    is($@, '', "$how: the stream ends with [DONE]");
    my $last = pop @e;
    ok($last->{error}, "$how: after an error event") || diag(to_json($last));
    is_deeply([ sort keys %{ $last->{error} } ], [ qw(code message param type) ], "$how: of the usual shape");
    is(scalar grep({ $_->{error} } @e), 0, "$how: one of them");
    like(join('', map { $_->{choices}[0]{text} } @e), qr/^t256 t257 t258 /, "$how: what came before went out");
    unavailable($_->response, "$how: no header sent") for @wait;
    unavailable($t->post($URI, { prompt => 'a' }), "$how: a new request");
    is($t->get('/health')->{status}, 503, "$how: /health");
    $t->start_engine;
    $t->ready(5);
    ok((wait_for { !grep { $t->post($URI, { prompt => 'fake: tokens=2' })->{status} != 200 } 1 .. 6 } 5), "$how: all is well again");
    $t->idle(5, "$how: nothing is left");
}

# Before ACCEPTED alone

my $c = $t->post($URI, { prompt => 'fake: die', max_tokens => 5, stream => TRUE }, start => 1);
$t->expect_end('engine');
unavailable($c->response, 'dies on a stream\'s request: a status, no event');
$t->reap('engine', 5);
$t->start_engine;
$t->ready(5);

# SIGTERM drains: what runs ends, what comes is refused, then the engine goes

my $s = $t->post($URI, { prompt => 'fake: tokens=40 delay=25', max_tokens => 40, stream => TRUE }, start => 1);
$s->read_head;
$s->event;
kill 'TERM', $t->{procs}{engine}{pid};
ok((wait_for { $t->get('/health')->{status} == 503 } 5), 'draining: /health is 503');
unavailable($t->post($URI, { prompt => 'fake: tokens=2' }), 'draining: a new request');
my @e = data_events($s->events);
is($e[-1]{choices}[0]{finish_reason}, 'length', 'draining: the stream ends as it should');
is(join('', map { $_->{choices}[0]{text} } @e), join('', map { "t$_ " } 256 .. 295), 'draining: whole');
ok($t->reap('engine', 10), 'then the engine ends');

# Many restarts under load: every request ends, with an answer or a clear refusal

my %ends;
for my $round (1 .. 4) {
    $t->start_engine;
    $t->ready(5);
    my @c = map { $t->post($URI, { prompt => 'fake: tokens=100 delay=10', max_tokens => 100, stream => $_ % 2 ? TRUE : FALSE }, start => 1) } 1 .. 20;
    $_->read_head for @c[ 0, 2 ];
    $t->kill_engine;
    for my $c (@c) {
        my $r = $c->{res} // $c->read_head;
        if (!$r) {
            $ends{nothing}++;
        } elsif ($r->{status} == 200) {
            $ends{ eval { (data_events($c->events))[-1]{error} } ? 'event' : 'broken' }++;
        } else {
            $c->read_some while !$c->{done} && !$c->{eof};
            $ends{ $r->{status} }++;
        }
    }
}
is(($ends{event} // 0) + ($ends{503} // 0), 80, 'killed four times under load') || diag(to_json(\%ends));

# It welcomes the worker and is gone before the worker looks: what waited for it has a
# refusal that tells so, not one that finds limits of 0

kill STOP => @workers;
$t->start_engine;
kill STOP => $t->{procs}{engine}{pid};
kill CONT => @workers;
my @early = map { $t->post($URI, { prompt => 'fake: tokens=1' }, start => 1) } 1 .. 8;
sleep 0.3;
kill STOP => @workers;
kill CONT => $t->{procs}{engine}{pid};
sleep 0.3;
$t->kill_engine;
kill CONT => @workers;
unavailable($_->response, 'a request between WELCOME and the end') for @early;

is_deeply([ $t->workers ], \@workers, 'the same workers all along');
$t->start_engine;
$t->ready(5);
$t->idle(5, 'nothing is left');

$t->done;
