# A suffix that is lost, echoed or taken for something else, or an editor's request to
# /infill that its plug-in cannot use.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;

my $URI = '/v1/completions';
my $t = GLM::Test->new;
my $log = "$t->{dir}/submits";
$t->fake('--record', $log, '--max-seq', 512, '--default', 'tokens=2')->conf(locations => <<'END')->run->ready;
        location / { glm_pass unix:%%SOCKET%%; }
        location = /metrics { glm_pass unix:%%SOCKET%%; glm_api metrics; }
        location /long/ { glm_pass unix:%%SOCKET%%; glm_suffix_mask gmask; }
        location /short/ { glm_pass unix:%%SOCKET%%; glm_suffix_mask mask; glm_max_prompt 100; }
END

# The SUBMIT of a request that is accepted, and the answer
my $at = 0;
sub ask {
    my ($uri, $body) = @_;
    my $r = $t->post($uri, $body);
    die "$r->{status} $r->{body}\n" if $r->{status} != 200;
    my $all = $t->read_file($log);
    my ($line) = split /\n/, substr $all, $at;
    $at = length $all;
    return (json($line), json($r->{body}));
}
use constant GMASK => 0x2000;

# suffix

my ($s, $j) = ask($URI, { prompt => 'a', suffix => 'b [MASK] c' });
is_deeply([ @$s{qw(op 1 27)}, $s->{flags} & GMASK ], [ 1, 'a', 'b [MASK] c', 0 ], 'a suffix, whose masks are the engine\'s to leave');
is($j->{choices}[0]{text}, 't256 t257 ', 'the text between');
($s, $j) = ask("/long$URI", { prompt => 'a', suffix => 'b' });
is($s->{flags} & GMASK, GMASK, 'glm_suffix_mask gmask');
($s) = ask("/long$URI", { prompt => 'a' });
is($s->{flags} & GMASK, 0, 'which means nothing without a suffix');
for my $none (undef, '') {
    ($s) = ask($URI, { prompt => 'a', suffix => $none });
    ok(!exists $s->{27}, 'no suffix: ' . to_json($none));
}
($s) = ask($URI, { prompt => '', suffix => 'b' });
is_deeply([ @$s{qw(1 27)} ], [ '', 'b' ], 'nothing before it');
($s, $j) = ask($URI, { prompt => 'prompt', suffix => 'suffix', echo => TRUE });
is($j->{choices}[0]{text}, 'promptt256 t257 ', 'echo: the prompt and the text, never the suffix');
($s) = ask($URI, { prompt => [ 97, 98 ], suffix => 'b', n => 2, stop => 'x' });
is_deeply([ @$s{qw(3 27 n 17)} ], [ [ 97, 98 ], 'b', 2, [ 'x' ] ], 'ids before it');
($s) = ask($URI, { prompt => [ 'a', 'b' ], suffix => 'c' });
is($s->{27}, 'c', 'several prompts');
is(join('', map { $_->{choices}[0]{text} } $t->stream(prompt => 'a', suffix => 'b')), 't256 t257 ', 'a stream');

check_error($t->post($URI, { prompt => 'a', suffix => 7 }), 400, 'a number', param => 'suffix', like => qr/string/);
check_error($t->post($URI, { prompt => 'a', suffix => "\0" }), 400, 'NUL', param => 'suffix', like => qr/U\+0000/);
check_error($t->post("/short$URI", { prompt => 'a', suffix => 'x' x 101 }), 400, 'longer than glm_max_prompt', param => 'suffix',
    like => qr/101.*100/);
check_error($t->post($URI, { prompt => '', suffix => '' }), 400, 'nothing at all', param => 'prompt');
check_error($t->post($URI, { prompt => 'a', suffix => 'b', mode => 'unidirectional' }), 400, 'mode unidirectional',
    param => 'suffix', like => qr/unidirectional/);
check_error($t->post($URI, { prompt => 'a', suffix => 'b', echo => TRUE, logprobs => 1 }), 400, 'echo with logprobs',
    param => 'suffix', like => qr/echo/);
check_error($t->post($URI, { prompt => 'a', suffix => 'b', prompt_logprobs => 1 }), 400, 'prompt_logprobs',
    param => 'suffix', like => qr/prompt_logprobs/);
check_error($t->post($URI, { prompt => 'fake: error=400 param=suffix', suffix => 'b' }), 400, 'what the engine says',
    param => 'suffix');
$at = length $t->read_file($log);

# /infill, as llama.vim asks

my %vim = (input_prefix => "def add(a, b):\n", prompt => '    return ', input_suffix => "\n\nadd(1, 2)\n",
    input_extra => [ { filename => 'b.py', text => "x = 1\n", time => [ 1, 2 ] }, { text => 'y' } ], n_predict => 64, n_indent => 0,
    top_k => 40, top_p => 0.99, stream => FALSE, samplers => [ 'top_k', 'top_p', 'infill' ], cache_prompt => TRUE,
    t_max_prompt_ms => 500, t_max_predict_ms => 1500);
($s, $j) = ask('/infill', \%vim);
is($s->{2}, "b.py\nx = 1\n\ny\ndef add(a, b):\n    return ", 'other files, the prefix and the line are one text');
is($s->{27}, "\n\nadd(1, 2)\n", 'and the rest is its suffix');
is_deeply([ @$s{qw(op max_tokens truncate n)}, @{ $s->{16} }{qw(temperature top_k)} ], [ 1, 64, -1, 1, 0, 40 ], 'greedy by default');
is(sprintf('%.2f', $s->{16}{top_p}), '0.99', 'top_p');
is_deeply([ sort keys %$j ], [ qw(content has_new_line index model stop stop_type stopping_word timings tokens_cached
    tokens_evaluated tokens_predicted) ], 'keys of the answer');
is_deeply([ @$j{qw(content stop stop_type stopping_word model has_new_line tokens_predicted)} ],
    [ 't256 t257 ', TRUE, 'eos', '', 'fake-model', FALSE, 2 ], 'the answer');
is_deeply([ sort keys %{ $j->{timings} } ], [ sort map { ("prompt_$_", "predicted_$_") } qw(n ms per_token_ms per_second) ], 'timings');
is($j->{timings}{prompt_n}, $j->{tokens_evaluated}, 'timings: prompt_n');
is($j->{timings}{predicted_n}, 2, 'timings: predicted_n');
($s, $j) = ask('/infill', { %vim, response_fields => [ 'content', 'timings/prompt_n', 'timings/predicted_ms', 'truncated', 'x' ] });
is_deeply([ sort keys %$j ], [ qw(content timings/predicted_ms timings/prompt_n) ], 'response_fields: flat, unknown ones left out');
($s, $j) = ask('/infill', { %vim, response_fields => [ '' ] });
is_deeply($j, {}, 'response_fields of nothing');
($s, $j) = ask('/infill', { %vim, prompt => 'fake: tokens=3 stopindex=1', stop => [ 'a', 'b' ] });
is_deeply([ @$j{qw(stop_type stopping_word)} ], [ 'word', 'b' ], 'a stop string');
($s, $j) = ask('/infill', { input_prefix => '', prompt => 'fake: tokens=9', n_predict => 4 });
is($j->{stop_type}, 'limit', 'the limit');
($s) = ask('/infill', { input_suffix => 'x', prompt => '[MASK] a' });
is_deeply([ $s->{2}, $s->{max_tokens} ], [ '[MASK] a', 128 ], 'masks are text; without n_predict a quarter of the context');
($s) = ask('/infill', { prompt => 'a', input_suffix => ('x' x 255) . "\x{4f60}" . ('y' x 5000) });
is($s->{27}, 'x' x 255, 'a long suffix is cut to half of the context, at a character');
($s) = ask('/infill', { prompt => 'a', temperature => 0.7, seed => 5, repeat_penalty => 1.5, ignore_eos => TRUE });
is_deeply([ sprintf('%.1f', $s->{16}{temperature}), @{ $s->{16} }{qw(seed repetition)}, $s->{flags} & 8 ], [ '0.7', 5, 1.5, 8 ], 'sampling');
($s) = ask('/infill', { prompt => 'a', seed => -1 });
is($s->{16}{flags}, 0, 'seed -1 is none');
($s) = ask('/long/infill', \%vim);
is($s->{flags} & GMASK, GMASK, 'glm_suffix_mask');

# Streamed

my $c = $t->post('/infill', { prompt => 'fake: tokens=4 delay=20', n_predict => 9, stream => TRUE }, start => 1);
is($c->read_head->{headers}{'content-type'}, 'text/event-stream; charset=utf-8', 'a stream');
my @e = map { json($_->{data}) } $c->events;
is(join('', map { $_->{content} } @e), 't256 t257 t258 t259 ', 'its text');
is_deeply([ map { $_->{stop} ? 1 : 0 } @e ], [ (0) x $#e, 1 ], 'stop in the last event, which is no [DONE]');
is($e[-1]{timings}{predicted_n}, 4, 'with timings');
$c = $t->post('/infill', { prompt => 'fake: tokens=4 delay=20 errorat=2', stream => TRUE }, start => 1);
$c->read_head;
@e = map { json($_->{data}) } $c->events;
is($e[-1]{error}{message}, 'fake error', 'an error ends a stream');

# t_max_predict_ms: enough when a line is there and the time is over

for my $stream (0, 1) {
    $c = $t->post('/infill', { prompt => "fake: delay=100 echo\n" . 'x' x 90, n_predict => 200, t_max_predict_ms => 3000,
        stream => $stream ? TRUE : FALSE }, start => 1);
    my $r = $stream ? do { $c->read_head; $c->events; 1 } : $c->response;
    my @j = $stream ? map { json($_->{data}) } @{ $c->{events} } : json($r->{body});
    my $text = join '', map { $_->{content} } @j;
    like($text, qr/^fake: delay=100 echo\nx/, 't_max_predict_ms: the line is whole' . ($stream ? ', stream' : ''));
    cmp_ok(length $text, '<', 105, 'and the rest is cut');
    is_deeply([ @{ $j[-1] }{qw(stop stop_type has_new_line)} ], [ TRUE, 'limit', TRUE ], 'by a limit') || diag(to_json($j[-1]));
}
$t->idle(10, 'what is cut is freed');

for ([ { }, 'input_prefix', qr/empty/ ], [ { prompt => '', input_prefix => '' }, 'input_prefix', qr/empty/ ],
    [ { prompt => [ 1 ] }, 'prompt', qr/string/ ], [ { prompt => 'a', input_prefix => 7 }, 'input_prefix', qr/string/ ],
    [ { prompt => 'a', input_suffix => "\0" }, 'input_suffix', qr/U\+0000/ ],
    [ { prompt => 'a', input_extra => {} }, 'input_extra', qr/list/ ],
    [ { prompt => 'a', input_extra => [ { filename => 'x' } ] }, 'input_extra', qr/\[0\]/ ],
    [ { prompt => 'a', input_extra => [ { text => 'x' }, { text => 'x', filename => 1 } ] }, 'input_extra', qr/\[1\]/ ],
    [ { prompt => 'a', input_extra => [ { text => "\0" } ] }, 'input_extra', qr/U\+0000/ ],
    [ { prompt => 'a', n_predict => -2 }, 'n_predict', qr/-1/ ], [ { prompt => 'a', n_predict => 1.5 }, 'n_predict', qr/integer/ ],
    [ { prompt => 'a', n_predict => 600 }, 'n_predict', qr/n_predict.*512/ ],
    [ { prompt => 'fake: error=400 param=suffix' }, 'input_suffix', qr/fake/ ],
    [ { prompt => 'a', response_fields => 'content' }, 'response_fields', qr/list/ ],
    [ { prompt => 'a', response_fields => [ 1 ] }, 'response_fields', qr/strings/ ],
    [ { prompt => 'a', samplers => 'top_k' }, 'samplers', qr/list/ ])
{
    my ($body, $param, $like) = @$_;
    check_error($t->post('/infill', $body), 400, to_json($body), param => $param, like => $like);
}
check_error($t->post('/short/infill', { prompt => 'a' x 50, input_prefix => 'b' x 51 }), 400, 'longer than glm_max_prompt together',
    param => 'input_prefix', like => qr/101.*100/);

# The directive

$t->{locations} =~ s/glm_suffix_mask gmask/glm_suffix_mask smask/;
my ($rc, $out) = $t->nginx_test;
ok($rc && $out =~ /invalid value "smask"/, 'glm_suffix_mask of another mask') || diag($out);

$t->idle(10, 'nothing is left');
$t->done;
