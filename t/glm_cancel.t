# A client that leaves in a state that a model passes too quickly to be caught in, or
# an engine that is slow to let go.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;
use GLM::HTTP2;

my $URI = '/v1/completions';
my $t = GLM::Test->new->fake('--slots', 2, '--max-queue', 1000);
$t->conf(servers => 'server { listen 127.0.0.1:%%H2%% http2; location / { glm_pass unix:%%SOCKET%%; } }',
    vars => { H2 => my $h2 = GLM::Test::port() });
$t->run->ready;

my %words = (
    'not yet accepted' => 'accept=600000',
    'queued' => 'queued',
    'prefilling' => 'first=600000',
    'decoding' => 'tokens=2000 delay=5',
    'silent' => 'tokens=2000 hangat=3',
    'silent from the start' => 'hang',
    'finished, not done' => 'tokens=2 nodone',
);
my %leave = (
    FIN => sub { $_[0]->close },
    RST => sub { $_[0]->reset },
);

for my $state (sort keys %words) {
    my @fill;
    if ($state eq 'queued') {
        @fill = map { $t->post($URI, { prompt => 'fake: first=600000', max_tokens => 5 }, start => 1) } 1, 2;
        $t->wait_stat('num_requests_running', 2, 5);
    }
    my $busy = @fill;
    my @kind = map { my $h = $_; map { [ $h, $_ ] } FALSE, TRUE } sort keys %leave;
    for (@kind) {
        my ($how, $stream) = @$_;
        my $c = $t->post($URI, { prompt => "fake: $words{$state}", max_tokens => 2000, stream => $stream }, start => 1);
        if ($state =~ /^(not yet|silent from)/) {
            ok((wait_for { ($t->stat('requests_total') // 1) > 0 } 1), 'submitted');
        } elsif ($state eq 'queued') {
            $t->wait_stat('num_requests_waiting', 1, 5);
        } else {
            $t->wait_stat('num_requests_running', 1, 5);
        }
        $c->fill(Time::HiRes::time() + 0.03);
        $leave{$how}->($c);
        my $name = "$state, $how" . ($stream ? ', stream' : '');
        if ($busy) {
            ok($t->wait_stat('num_requests_waiting', 0, 5), $name);
        } else {
            $t->idle(5, $name);
        }
    }
    my $h = GLM::HTTP2->new(port => $h2);
    my $keep = $h->request('POST', $URI, body => to_json({ prompt => 'fake: tokens=3 delay=300', stream => TRUE }));
    my $id = $h->request('POST', $URI, body => to_json({ prompt => "fake: $words{$state}", max_tokens => 2000, stream => TRUE }));
    $h->until(sub { 0 }, 0.05);
    $h->rst($id);
    if (!$busy) {
        is(join('', map { $_->{choices}[0]{text} } data_events($h->events($keep))), 't256 t257 t258 ',
            "$state, RST_STREAM: the other stream is whole");
        $t->idle(5, "$state, RST_STREAM");
    }
    $h->close;
    $_->close for @fill;
    $t->idle(5, "$state: all is free");
}

# Between SUBMIT and the next request of the same connection

my $c = $t->client;
$c->send(join '', map { GLM::HTTP::format('POST', $URI, body => to_json({ prompt => 'fake: first=600000', max_tokens => 5 })) } 1 .. 3);
$t->wait_stat('num_requests_running', 1, 5);
$c->close;
$t->idle(5, 'pipelined requests of a client that left');

# A client that closed its writing side only: gone, as nginx has it

$c = $t->post($URI, { prompt => 'fake: first=600000', max_tokens => 5 }, start => 1);
$t->wait_stat('num_requests_running', 1, 5);
$c->shut_write;
$t->idle(5, 'half-closed counts as gone');

# An engine that ignores CANCEL: the client's place is kept, other work goes on

$c = $t->post($URI, { prompt => 'fake: tokens=60 delay=20 nocancel', max_tokens => 60, stream => TRUE }, start => 1);
$c->read_head;
$c->event;
$c->close;
is($t->post($URI, { prompt => 'fake: tokens=3' })->{status}, 200, 'work goes on beside a request that will not go');
$t->idle(5, 'it ends at last');

# Five hundred clients come and go

my @c = map { $t->post($URI, { prompt => 'fake: tokens=2000 delay=5', max_tokens => 2000, stream => $_ % 2 ? TRUE : FALSE }, start => 1) } 1 .. 500;
wait_for { ($t->stat('num_requests_running') // 0) == 2 } 5;
cmp_ok($t->stat('num_requests_waiting'), '>', 100, 'a long queue');
$_->reset for @c;
$t->idle(10, 'five hundred leave');
is($t->post($URI, { prompt => 'fake: tokens=3' })->{status}, 200, 'and there is room');

$t->done;
