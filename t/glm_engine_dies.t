# An engine that is killed at any moment of any request: a client that hears nothing, half
# a stream without an error, or a worker that goes with it.  GLM_SEED=N begins elsewhere.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;
use Time::HiRes qw(sleep);

my $SEED = $ENV{GLM_SEED} // 1;
my ($C, $H, $I, $E, $S) = qw(/v1/completions /v1/chat/completions /v1/infill /infill /v1/score);
my $t = GLM::Test->new(log_level => 'crit')->fake('--max-seq', 9000)->run->ready;
my ($worker) = $t->workers;

sub one { return $_[rand @_] }

sub body {
    my ($uri) = @_;
    return (prompt => 'a', choices => [ ('abc') x one(1, 900) ]) if $uri eq $S;
    my $script = join ' ', 'fake:', 'tokens=' . one(3, 50, 300), 'burst=' . one(1, 5), 'delay=' . one(0, 0, 1, 3),
        one('', 'bytes=3000', 'bychoice');
    my @stream = (stream => one(TRUE, FALSE));
    return (input_prefix => $script, n_predict => 300, @stream) if $uri eq $E;
    my $n = one(1, 3);
    return ($uri eq $H ? (messages => [ { role => 'user', content => $script } ])
        : (prompt => ($uri eq $I ? '[MASK] [MASK] ' : '') . $script), max_tokens => 300, n => $n,
        rand() < 0.3 ? (num_beams => $n) : (), @stream);
}

# '' or what is wrong with an answer, whole or not
sub fault {
    my ($uri, $c) = @_;
    my $r = $c->read_head or return 'no answer';
    if ($r->{headers}{'content-type'} !~ /event-stream/) {
        $c->read_some until $c->{done} || $c->{eof};
        return $r->{status} =~ /^(200|503)$/ && json($r->{body}) ? '' : "$r->{status} $r->{body}";
    }
    my @data = map { $_->{data} // '' } $c->events;
    return 'cut' if !$c->{done};
    my $last = pop @data;
    return json($last)->{stop} || json($last)->{error} ? '' : $last if $uri eq $E;
    return $last eq '[DONE]' ? '' : $last;
}

for my $round ($SEED .. $SEED + 14) {
    srand $round;
    my @c;
    for (1 .. 6) {
        my $uri = one($C, $H, $I, $E, $S);
        push @c, [ $uri, $t->post($uri, { body($uri) }, start => 1, rand() < 0.3 ? (rcvbuf => 4096) : ()) ];
    }
    kill STOP => $worker if rand() < 0.5;
    sleep rand 0.03;
    (shift @c)->[1]->reset if rand() < 0.4;
    $t->kill_engine;
    kill CONT => $worker;
    is(join(', ', map { my $f = fault(@$_); $f eq '' ? () : "$_->[0]: $f" } @c), '', "GLM_SEED=$round: each is told");
    $t->start_engine;
    $t->ready;
    is(($t->workers)[0], $worker, 'and the worker goes on');
}
$t->idle(10, 'nothing is left');
$t->done;
