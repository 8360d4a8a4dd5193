# A client that leaves, however and whenever, and whose sequence goes on running,
# waiting or holding pages of the KV cache.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;
use GLM::HTTP2;

my $URI = '/v1/completions';
my $P = 'English: Where is the file? German:';

my %leave = (
    FIN => sub { $_[0]->close },
    RST => sub { $_[0]->reset },
);

sub gone {
    my ($t, $why, @clients) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $start = Time::HiRes::time();
    $t->idle(5, "$why: nothing runs, waits or holds pages");
    return Time::HiRes::time() - $start;
}

# Real engine, one row: one decodes, the rest waits

my $t = GLM::Test->new->engine('--max-num-seqs', 1);
$t->conf(servers => 'server { listen 127.0.0.1:%%H2%% http2; location / { glm_pass unix:%%SOCKET%%; } }',
    vars => { H2 => my $h2 = GLM::Test::port() });
$t->run->ready;

my %long = (prompt => $P, temperature => 0, ignore_eos => TRUE, max_tokens => 1000);
for my $how (sort keys %leave) {
    for my $kind ('stream', 'plain') {
        my @c = map { $t->post($URI, { %long, prompt => "$P $_", stream => $kind eq 'stream' ? TRUE : FALSE }, start => 1) } 1 .. 6;
        ok($t->wait_stat('num_requests_running', 1, 5), "$how, $kind: one runs");
        wait_for { ($t->stat('num_requests_waiting') // 0) >= 3 } 5;
        cmp_ok($t->stat('num_requests_waiting'), '>=', 1, "$how, $kind: others wait");
        # first a waiting one, then the running one, then the rest
        $leave{$how}->($c[5]);
        $leave{$how}->($c[0]);
        $leave{$how}->($_) for @c[ 1 .. 4 ];
        gone($t, "$how, $kind");
    }
}

# In the middle of the answer, and at every moment before it

for my $n (0 .. 3) {
    my $c = $t->post($URI, { %long, stream => TRUE }, start => 1);
    $c->read_head;
    $c->event for 1 .. $n;
    $leave{ $n % 2 ? 'FIN' : 'RST' }->($c);
}
gone($t, 'after some events');
for my $i (1 .. 40) {
    my $c = $t->post($URI, { %long, stream => $i % 2 ? TRUE : FALSE }, start => 1);
    $c->fill(Time::HiRes::time() + $i * 0.0005);
    $leave{ $i % 3 ? 'FIN' : 'RST' }->($c);
}
gone($t, 'forty clients, half a millisecond apart');

# Prefilling: prompts as long as they get

for my $i (1 .. 12) {
    my $c = $t->post($URI, { prompt => [ map { 5 + ($_ * $i) % 7000 } 1 .. 900 ], max_tokens => 100, ignore_eos => TRUE, stream => TRUE }, start => 1);
    $c->fill(Time::HiRes::time() + $i * 0.004);
    $leave{ $i % 2 ? 'FIN' : 'RST' }->($c);
}
gone($t, 'while prefilling');

# A slow reader that leaves with much in its way

my $slow = $t->client(rcvbuf => 4096);
$slow->request('POST', $URI, body => to_json({ %long, logprobs => 20, stream => TRUE }));
$slow->read_head;
$t->idle(30, 'a slow reader that stays: its sequence ends');
$slow->reset;
gone($t, 'a slow reader that leaves');

# HTTP/2: the stream alone, then the connection

my $h = GLM::HTTP2->new(port => $h2);
my @id = map { $h->request('POST', $URI, body => to_json({ %long, prompt => "$P $_", stream => TRUE })) } 1 .. 5;
ok($t->wait_stat('num_requests_running', 1, 5), 'HTTP/2: one runs');
$h->rst($_) for reverse @id;
gone($t, 'RST_STREAM, queued and decoding');
my $id = $h->request('POST', $URI, body => to_json({ prompt => $P, temperature => 0 }));
is(json($h->response($id)->{body})->{choices}[0]{text}, 'Wo ist die Datei?', 'the connection goes on');
$h->request('POST', $URI, body => to_json({ %long, stream => $_ % 2 ? TRUE : FALSE })) for 1 .. 5;
$t->wait_stat('num_requests_running', 1, 5);
$h->close;
gone($t, 'HTTP/2 connection closed');

is($t->complete(prompt => $P, temperature => 0)->{choices}[0]{text}, 'Wo ist die Datei?', 'and all is as before');
like($t->read_file('access.log'), qr/ 499 /, 'the log tells of 499');

$t->done;
