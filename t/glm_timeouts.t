# An engine that says nothing, or nothing more, and a client that is left waiting, or
# whose request goes on at the engine after the time-out.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;
use Time::HiRes qw(time);

my $t = GLM::Test->new->fake;
$t->conf(locations => <<'END')->run->ready;
        location / { glm_pass unix:%%SOCKET%%; glm_first_token_timeout 300ms; glm_read_timeout 300ms; }
        location = /metrics { glm_pass unix:%%SOCKET%%; glm_api metrics; }
        location /read/ { glm_pass unix:%%SOCKET%%; glm_first_token_timeout 10s; glm_read_timeout 300ms; }
        location /first/ { glm_pass unix:%%SOCKET%%; glm_first_token_timeout 300ms; glm_read_timeout 10s; }
        location /late/ { glm_pass unix:%%SOCKET%%; glm_first_token_timeout 20s; glm_read_timeout 300ms; glm_ping_interval 0; }
        location /ping/ { glm_pass unix:%%SOCKET%%; glm_ping_interval 50ms; glm_read_timeout 10s; }
        location /noping/ { glm_pass unix:%%SOCKET%%; glm_ping_interval 0; glm_read_timeout 10s; }
END
my $URI = '/v1/completions';

sub ask {
    my ($where, $words, %body) = @_;
    return $t->post("$where$URI", { prompt => "fake: $words", max_tokens => 50, %body });
}

sub took {
    my ($begin, $name) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $s = time - $begin;
    ok($s > 0.25 && $s < 20 * GLM::Test::patience(), $name) || diag("$s s");
}

# Before the first token

for my $words ('hang', 'accept=60000', 'first=60000') {
    for my $stream (FALSE, TRUE) {
        my $begin = time;
        my $r = ask('', $words, stream => $stream);
        my $name = $words . ($stream ? ', stream' : '');
        if ($stream && $r && $r->{status} == 200) {
            my ($e, @more) = grep { $_->{error} } map { json($_) } grep { $_ ne '[DONE]' } $r->{body} =~ /^data: (.*)$/mg;
            is($e->{error}{type}, 'timeout', "$name: an error event");
            like($r->{body}, qr/data: \[DONE\]\n\n\z/, "$name: and [DONE]");
            is($words, 'first=60000', "$name: headers only after the engine accepted");
        } else {
            check_error($r, 504, "$name: 504", type => 'timeout', code => 'deadline_exceeded', param => undef);
        }
        took($begin, "$name: after 300 ms");
    }
}
$t->idle(5, 'the engine hears of it');

# Between tokens

my $begin = time;
my $c = $t->post("/read$URI", { prompt => 'fake: tokens=10 hangat=3', max_tokens => 50, stream => TRUE }, start => 1);
$c->read_head;
my @e = data_events($c->events);
my $last = pop @e;
is(join('', map { $_->{choices}[0]{text} } @e), 't256 t257 t258 ', 'what came before goes out');
is($last->{error}{type}, 'timeout', 'then an error event, and [DONE]');
is_deeply([ sort keys %{ $last->{error} } ], [ qw(code message param type) ], 'of the usual shape');
took($begin, 'after 300 ms');
check_error(ask('/read', 'tokens=10 hangat=3'), 504, 'a plain answer: 504', type => 'timeout');
$t->idle(5, 'the engine hears of it');

# Time-outs are as exact as nginx's timers, whatever timer ran before

for my $case ([ '', 'hang', 0.3 ], [ '/read', 'tokens=10 hangat=3', 0.3 ], [ '/late', 'first=1300 tokens=5 hangat=1', 1.6 ]) {
    my ($where, $words, $due) = @$case;
    for my $stream (FALSE, TRUE) {
        my $s;
        for (1 .. 10) {
            my $begin = time;
            ask($where, $words, stream => $stream);
            $s = time - $begin;
            last if $s < $due + 0.5;
        }
        cmp_ok($s, '<', $due + 0.5 * GLM::Test::patience(), "$words" . ($stream ? ', stream' : '') . ": ends after $due s");
    }
}

# A token in time starts the time anew

sub whole {
    my ($where, $words, $tokens) = @_;
    return wait_for { (json(ask($where, $words)->{body})->{usage}{completion_tokens} // 0) == $tokens };
}
ok(whole('/read', 'tokens=6 delay=120', 6), 'each token starts glm_read_timeout anew');
ok(whole('/first', 'tokens=2 delay=200', 2), 'glm_first_token_timeout is for the first only');
is(ask('/read', 'first=600 tokens=1')->{status}, 200, 'glm_read_timeout does not count before the first');

# A finish that never comes

check_error(ask('/read', 'tokens=3 nodone'), 504, 'no DONE: 504', type => 'timeout');
$t->idle(5, 'the engine hears of it');

# Pings: comments while nothing comes, none while tokens come

# A busy machine makes gaps and joins them: once in a minute all is well.
sub events {
    my ($words) = @_;
    my $c = $t->post("/ping$URI", { prompt => "fake: $words", max_tokens => 50, stream => TRUE }, start => 1);
    $c->read_head;
    @e = $c->events;
    return scalar grep { defined $_->{comment} } @e;
}
ok((wait_for { my $n = events('tokens=3 first=250 delay=200'); $n >= 4 && $n <= 20
    && grep { defined $e[$_]{comment} && $e[$_]{at} < $e[-1]{at} - 0.05 } 0 .. $#e }),
    'pings come in the gaps, at their interval, and not with the next token') || diag(to_json(\@e));
is_deeply([ grep { defined $_->{bad} } @e ], [], 'pings are comments of their own');
is(join('', map { $_->{choices}[0]{text} } data_events(@e)), 't256 t257 t258 ', 'and the text is whole');
ok((wait_for { events('tokens=30 delay=15') == 0 }), 'no ping while tokens come') if !$ENV{GLM_SANITIZED};
$c = $t->post("/noping$URI", { prompt => 'fake: tokens=2 first=300 delay=300', max_tokens => 50, stream => TRUE }, start => 1);
$c->read_head;
is(scalar grep({ defined $_->{comment} } $c->events), 0, 'glm_ping_interval 0: none');
unlike(ask('/ping', 'tokens=2 delay=200')->{body}, qr/ping/, 'none in a plain answer');

# send_timeout is nginx's own: a reader that takes nothing is not our time-out

my $s = $t->client(rcvbuf => 4096);
$s->request('POST', "/first$URI", body => to_json({ prompt => 'fake: tokens=2000 bytes=200', max_tokens => 2000, stream => TRUE }));
$s->read_head;
$t->idle(30, 'the engine is done with a slow reader');
select undef, undef, undef, 0.4;
is(length join('', map { $_->{choices}[0]{text} } data_events($s->events)), 400_000, 'who still gets all of it');

$t->done;
