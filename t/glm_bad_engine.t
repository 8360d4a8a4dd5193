# An engine that breaks its own rules, or says what cannot be relayed, and a worker that
# crashes, hangs, or passes it on.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;

my $URI = '/v1/completions';
my $t = GLM::Test->new->fake('--max-seq', 9000)->conf(locations => <<'END')->run->ready;
        location / { glm_pass unix:%%SOCKET%%; glm_read_timeout 400ms; glm_first_token_timeout 5s; }
        location = /metrics { glm_pass unix:%%SOCKET%%; glm_api metrics; }
        location /small/ { glm_pass unix:%%SOCKET%%; glm_buffer_size 1k; glm_read_timeout 5s; }
END

sub ask {
    my ($words, %body) = @_;
    return $t->post($URI, { prompt => "fake: $words", max_tokens => 50, %body });
}
sub stream {
    my ($words, %body) = @_;
    return eval { $t->stream(prompt => "fake: $words", max_tokens => 50, %body) };
}
sub text { return join '', map { $_->{choices} ? $_->{choices}[0]{text} : '' } @_ }

# Errors of the engine come out as it means them

my %status = (400 => 'invalid_request_error', 404 => 'invalid_request_error', 500 => 'server_error',
    501 => 'not_implemented', 503 => 'service_unavailable_error', 504 => 'timeout');
for my $s (sort keys %status) {
    for my $stream (FALSE, TRUE) {
        my $r = ask("error=$s code=some_code param=stop message=It_is_so retry=" . ($s == 503 ? 7 : 0), stream => $stream);
        check_error($r, $s, "error $s" . ($stream ? ', stream' : ''), type => $status{$s}, code => 'some_code',
            param => 'stop', like => qr/It is so/);
        is($r->{headers}{'retry-after'} // 'none', $s == 503 ? 7 : 'none', "error $s: Retry-After");
        is($r->{headers}{'x-should-retry'} // 'none', $s == 501 ? 'false' : 'none', "error $s: x-should-retry");
    }
}
check_error(ask('error=400'), 400, 'no code, no param', code => undef, param => undef);
for my $s (0 + '200', 100, 302, 999, 65000) {
    my $r = ask("error=$s");
    ok($r && $r->{status} >= 500 && $r->{status} < 600, "error $s of the engine is our fault") || diag($r && $r->{status});
    check_error($r, $r ? $r->{status} : 500, "error $s: shape");
}
check_error(ask('error=400 message=a"b\\c</script>'), 400, 'a message that needs escapes', like => qr/a"b/);
check_error(ask('error=400 message=' . 'm' x 500), 400, 'a long message');
check_error(ask("error=400 message=\x{4f60}\x{597d}"), 400, 'a message in UTF-8', like => qr/\x{4f60}/);

# In the middle: plain, a status; streamed, an event

for my $k (1, 5) {
    check_error(ask("tokens=9 errorat=$k error=500 code=broken message=Broken"), 500, "error after $k tokens", code => 'broken');
    my @e = stream("tokens=9 delay=5 errorat=$k error=500 code=broken message=Broken");
    my $last = pop @e;
    is_deeply($last, { error => { message => 'Broken', type => 'server_error', param => undef, code => 'broken' } },
        "error after $k tokens, stream") || diag($@ || to_json($last));
    is(text(@e), join('', map { "t$_ " } 256 .. 255 + $k), 'after the text');
}

# FINISH without DONE, DONE without FINISH, reason error

check_error(ask('tokens=3 nodone'), 504, 'no DONE', type => 'timeout');
my @e = stream('tokens=3 delay=5 nodone');
ok($e[-1]{error} || $e[-1]{choices}[0]{finish_reason}, 'no DONE, stream: it ends') || diag($@);
my $r = ask('tokens=3 nofinish');
ok($r && $r->{status} =~ /^(200|5..)$/, 'no FINISH: it ends');
@e = stream('tokens=3 delay=5 nofinish');
is(text(@e), 't256 t257 t258 ', 'no FINISH, stream: it ends') || diag($@);
$r = ask('tokens=3 reason=error');
ok($r && $r->{status} >= 500, 'reason error: not an answer like others') || diag($r && $r->{body});
@e = stream('tokens=3 delay=5 reason=error');
ok($e[-1]{error}, 'reason error, stream: an event') || diag($@ || to_json(\@e));
is(ask('tokens=3 noids', return_token_ids => TRUE)->{status} =~ /^(200|5..)$/ ? 1 : 0, 1, 'prompt ids that never come');
is(ask('tokens=3 stopindex=7', stop => [ 'zzz' ])->{status} =~ /^(200|5..)$/ ? 1 : 0, 1, 'a stop that we did not name');
$t->ready(5);
is(ask('tokens=3 cached=5')->{status}, 200, 'cached tokens');
is(json(ask('tokens=3 cached=5')->{body})->{usage}{prompt_tokens_details}{cached_tokens}, 5, 'are told');
is(json(ask('tokens=3 stopid=77')->{body})->{choices}[0]{stop_reason}, 77, 'a stop id is told');

# A garbled ring: the worker drops it and starts anew, no request hangs

for my $kind ('plain', 'stream') {
    my $beside = $t->post($URI, { prompt => 'fake: tokens=2000 delay=100', max_tokens => 2000, stream => TRUE }, start => 1);
    $beside->read_head;
    $beside->event;
    check_error(ask('garbage', stream => $kind eq 'stream' ? TRUE : FALSE), 503, "garbage, $kind",
        type => 'service_unavailable_error');
    @e = eval { data_events($beside->events) };
    ok($e[-1]{error}, "garbage, $kind: a stream beside it ends with an error event") || diag($@);
    like(text(@e), qr/^t256 /, "garbage, $kind: after its text");
    $t->ready(5);
    is(ask('tokens=3')->{status}, 200, "garbage, $kind: the next one works");
    $t->idle(5, "garbage, $kind: nothing is left");
}
like($t->read_file('error.log'), qr/\[error\].*broke the protocol/, 'the log tells of it');

# Much text: long answers, large tokens, many tokens a step, windows smaller than a message

my $want = sub {
    my ($tokens, $bytes) = @_;
    return join '', map { my $i = $_; map { substr 'abcdefghijklmnop', ($i + $_) % 16, 1 } 0 .. $bytes - 1 } 0 .. $tokens - 1;
};
for ([ 40, 20_000, 1 ], [ 8000, 40, 100 ], [ 3000, 1, 3000 ], [ 3, 300_000, 3 ]) {
    my ($tokens, $bytes, $burst) = @$_;
    my %body = (prompt => "fake: tokens=$tokens bytes=$bytes burst=$burst", max_tokens => $tokens);
    my $text = $want->($tokens, $bytes);
    my $name = "$tokens tokens of $bytes bytes, $burst a step";
    for my $where ('', '/small') {
        my $r = $t->post("$where$URI", \%body);
        ok($r && $r->{status} == 200 && json($r->{body})->{choices}[0]{text} eq $text, "$name, plain $where")
            || diag($r && substr $r->{body}, 0, 200);
        my $c = $t->post("$where$URI", { %body, stream => TRUE }, start => 1);
        $c->read_head;
        @e = eval { data_events($c->events) };
        ok(text(@e) eq $text, "$name, stream $where") || diag($@, length text(@e));
    }
}
my $lp = $t->complete(prompt => 'fake: tokens=2000 burst=2000', max_tokens => 2000, logprobs => 20)->{choices}[0]{logprobs};
is(scalar @{ $lp->{tokens} }, 2000, 'log-probabilities of 2000 tokens at once');

# Characters in pieces, and text that is held to the end

my $u = "\x{e9}\x{6f22}\x{1f600}";
for my $n (9, 10, 12, 14, 27) {
    my $full = int $n / 9;
    my $rest = $n % 9;
    my $keep = $u x $full . substr $u, 0, $rest >= 5 ? 2 : $rest >= 2 ? 1 : 0;
    is($t->complete(prompt => "fake: utf8 tokens=$n", max_tokens => 50)->{choices}[0]{text}, $keep, "half characters are dropped, $n bytes");
    @e = stream("utf8 tokens=$n delay=1");
    is(text(@e), $keep, "also streamed, $n bytes") || diag($@);
}
@e = stream('held tokens=5 delay=1', return_token_ids => TRUE);
is(text(@e), 't256 t257 t258 t259 t260 ', 'held text comes at last');
is_deeply([ map { @{ $_->{choices}[0]{token_ids} // [] } } @e ], [ 256 .. 260 ], 'with all ids');
my $odd = "\x{1}\x{1f}\"\\/\x{7f}\x{2028}\x{2029}</script>\n\r\t";
$r = $t->post($URI, { prompt => "fake: echo $odd", max_tokens => 200 });
is(json($r->{body})->{choices}[0]{text}, "fake: echo $odd", 'control characters and quotes are escaped');
unlike($r->{body}, qr/\xe2\x80[\xa8\xa9]/, 'so are the separators that end lines in browsers');
@e = eval { $t->stream(prompt => "fake: echo $odd", max_tokens => 200) };
is(text(@e), "fake: echo $odd", 'also in a stream');

$t->idle(5, 'nothing is left');
$t->done;
