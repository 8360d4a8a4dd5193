# Bad input that is accepted, crashes something, breaks the connection or another
# stream, or is refused without naming the field and the limit.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;

my $t = GLM::Test->new->engine('--max-num-seqs', 8);
$t->conf(http => 'client_max_body_size 512k; client_body_buffer_size 8k;', locations => <<'END')->run->ready;
        location / { glm_pass unix:%%SOCKET%%; glm_max_prompt 100k; glm_max_n 4; glm_max_stops 3; }
        location = /metrics { glm_pass unix:%%SOCKET%%; glm_api metrics; }
        location /small/ { glm_pass unix:%%SOCKET%%; glm_max_prompt 10; }
END

my $P = 'English: Where is the file? German:';
my $URI = '/v1/completions';
my $good = { prompt => $P, temperature => 0 };

# All on one connection: after each refusal it still answers.
my $c = $t->client;
my $refused = 0;

sub refused {
    my ($body, $status, $name, %o) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $uri = delete $o{uri} // $URI;
    $body = to_json($body) if ref $body;
    $c->request('POST', $uri, body => $body, headers => [ 'Content-Type', 'application/json' ]);
    my $r = $c->response;
    check_error($r, $status, $name, %o);
    beside(0);
    $refused++;
    return $r if $r && !$c->{eof} && ($r->{headers}{connection} // '') ne 'close';
    fail("$name: connection is kept");
    $c = $t->client;
    return $r;
}

sub bad {
    my ($field, $value, %o) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $prompt = $field eq 'prompt' ? '' : '"prompt":"a",';
    return refused(qq({$prompt"$field":$value}), 400,
        "$field: " . (length $value > 40 ? substr($value, 0, 40) . '...' : $value),
        param => $field, type => 'invalid_request_error', code => undef, %o);
}

# Streams that run beside all this, one after the other

my %long = (prompt => $P, temperature => 0, ignore_eos => TRUE, max_tokens => 60);
my $long = $t->complete(%long)->{choices}[0]{text};
cmp_ok(length $long, '>', 15, 'a long text');
my ($other, $beside, $disturbed) = (undef, 0, 0);

sub beside {
    my ($wait) = @_;
    if (!$other) {
        $other = $t->post($URI, { %long, stream => TRUE }, start => 1);
        $other->read_head;
    }
    while ($other->event($wait)) { }
    return if !$other->{done} && !$other->{eof} && !$wait;
    my @c = eval { data_events(@{ $other->{events} }) };
    $disturbed++ if $@ || $long ne join '', map { $_->{choices} ? $_->{choices}[0]{text} : '' } @c;
    $beside++;
    undef $other;
}

# Not JSON: param is null

my %broken = (
    'empty body' => '',
    'blank body' => '  ',
    'no JSON' => 'hello',
    'half an object' => '{"prompt": "a"',
    'trailing comma' => '{"prompt": "a",}',
    'trailing text' => '{"prompt": "a"} x',
    'single quotes' => "{'prompt': 'a'}",
    'invalid UTF-8' => "{\"prompt\": \"a\xff\"}",
    'cut UTF-8' => "{\"prompt\": \"a\xe4\xbd\"}",
    'overlong UTF-8' => "{\"prompt\": \"a\xc0\x80\"}",
    'encoded surrogate' => "{\"prompt\": \"a\xed\xa0\x80\"}",
    'invalid UTF-8 in a key' => "{\"prompt\": \"a\", \"\xff\": 1}",
    'NUL byte' => "{\"prompt\": \"a\0b\"}",
    'NUL after it' => "{\"prompt\": \"a\"}\0",
    'lone surrogate' => '{"prompt": "a\\ud800"}',
    'swapped surrogates' => '{"prompt": "\\udc00\\ud800"}',
    'bad escape' => '{"prompt": "\\x41"}',
    'raw newline in a string' => "{\"prompt\": \"a\nb\"}",
    'duplicate key' => '{"prompt": "a", "n": 1, "n": 1}',
    'duplicate prompt' => '{"prompt": "a", "prompt": "b"}',
    'NaN' => '{"prompt": "a", "temperature": NaN}',
    'Infinity' => '{"prompt": "a", "temperature": -Infinity}',
    'leading zero' => '{"prompt": "a", "n": 01}',
    '100,000 brackets' => '[' x 100000,
    '100,000 closed brackets' => '[' x 100000 . ']' x 100000,
    '100,000 objects' => '{"a":' x 20000 . '1' . '}' x 20000,
    'nesting in a field' => '{"prompt": "a", "x": ' . '[' x 100000 . ']' x 100000 . '}',
    'nesting after an escape' => '{"a\\"[": ' . '[' x 5000 . ']' x 5000 . '}',
    'UTF-16' => "\xff\xfe{\0}\0",
);
for my $name (sort keys %broken) {
    refused($broken{$name}, 400, $name, param => undef, type => 'invalid_request_error', code => undef,
        $broken{$name} =~ /\[{5}|(\{"a":){5}/ ? (like => qr/\b64\b/) : ());
}
# What the syntax allows and a field cannot hold
bad('prompt', '"a\\u0000b"');
bad('temperature', '1e999');
bad('temperature', '-1e999');
bad('seed', '99999999999999999999');
bad('seed', '-99999999999999999999');
refused($_, 400, "not an object: $_", type => 'invalid_request_error', param => undef)
    for '[]', '"a"', '1', 'null', 'true', '[{"prompt":"a"}]';
$c->request('POST', $URI, body => '{"prompt": "a", "x": "' . '[' x 3000 . '{}');
is(($c->response // {})->{status}, 400, 'a broken string of brackets');
$c->request('POST', $URI, body => to_json({ %$good, user => '[' x 3000 }));
is($c->response->{status}, 200, 'brackets in a string are no nesting');
$c->request('POST', $URI, body => '{"prompt": "English: Where is the file? German:", "temperature": 0, "x": '
    . '[' x 20 . ']' x 20 . '}');
is($c->response->{status}, 200, 'neither is a little of it');

# Prompt

refused('{}', 400, 'no prompt', param => 'prompt');
bad('prompt', $_) for 'null', '""', '" "', '[]', '[[]]', '[""]', '1', 'true', '{}', '[null]', '[true]',
    '["a", 1]', '[1, "a"]', '[[1], "a"]', '[1.5]', '[1, null]', '[[1.5]]', '[[[1]]]', '[{}]';
bad('prompt', $_, like => qr/8192|8191/) for '[8192]', '[-1]', '[2147483648]',
    '[5, 9223372036854775807]', '[[100000]]', '[4294967301]';
refused({ prompt => 'file ' x 1100 }, 400, 'a prompt over the context', param => 'prompt',
    code => 'context_length_exceeded', like => qr/1024/);
my $r = refused({ prompt => $P, max_tokens => 1020 }, 400, 'prompt and max_tokens over the context',
    code => 'context_length_exceeded', like => qr/1024/);
like($r->{body}, qr/1020/, 'with max_tokens');
like($r->{body}, qr/\b11\b/, 'and the prompt\'s tokens in the message');
$c->request('POST', $URI, body => to_json({ prompt => $P, max_tokens => 1024 - 1 - 11, temperature => 0 }));
is($c->response->{status}, 200, 'what just fits is served');
refused({ prompt => $P, max_tokens => 1024 - 11 }, 400, 'one more is not', code => 'context_length_exceeded');
refused({ prompt => 'a', max_tokens => 2147483647 }, 400, 'max_tokens of 31 bits', code => 'context_length_exceeded');
refused({ prompt => [ (5) x 2000 ], max_tokens => 1 }, 400, 'ids over the context',
    code => 'context_length_exceeded');
refused({ prompt => 'a ' x 60000 }, 400, 'a prompt over glm_max_prompt', param => 'prompt',
    like => qr/102400|100k/);
refused({ prompt => 'abcdefghijk' }, 400, 'eleven bytes where ten are allowed', param => 'prompt',
    like => qr/10/, uri => "/small$URI");

# Integers: 1.0 is one, 1.5, true and "1" are none

my $ok = sub {
    my ($body, $name) = @_;
    $c->request('POST', $URI, body => $body);
    my $r = $c->response;
    is($r && $r->{status}, 200, $name) or diag($r && $r->{body});
    return $r && json($r->{body});
};
is($ok->('{"prompt":"a","max_tokens":2.0,"temperature":0,"ignore_eos":true}', 'max_tokens 2.0')
        ->{usage}{completion_tokens}, 2, 'is two');
$ok->('{"prompt":[22.0,5],"max_tokens":1}', 'ids with a point');
$ok->('{"prompt":"a","top_k":2147483647,"max_tokens":1}', 'a top_k above the vocabulary');
$ok->('{"prompt":"a","temperature":1e-300,"max_tokens":1}', 'a temperature that rounds to 0');
$ok->('{"prompt":"a","temperature":1e-30,"max_tokens":1,"top_p":1e-300,"min_p":1e-300}', 'tiny numbers');
$ok->('{"prompt":"a","seed":-1,"max_tokens":1}', 'a negative seed');
$ok->('{"prompt":"a","seed":9223372036854775807,"max_tokens":1}', 'the largest seed');
$ok->('{"prompt":"a","temperature":2,"top_p":1.0,"max_tokens":1,"n":1.0}', 'upper ends');
$ok->('{"prompt":"a","logprobs":20,"top_p":0,"min_p":0,"max_tokens":1,"top_k":0}', 'lower ends');

my %int = (max_tokens => [ -1, 2147483648, 9223372036854775807 ], n => [ 0, -1, 5, 129 ],
    best_of => [ -1, 21 ], logprobs => [ 21, -2 ], top_k => [ -2 ], min_tokens => [ -1 ],
    num_beams => [ 0, -1 ], no_repeat_ngram_size => [ -1 ], prompt_logprobs => [ -2 ],
    stream_interval => [ 0 ], truncate_prompt_tokens => [ 0, -2 ], seed => []);
for my $f (sort keys %int) {
    bad($f, $_) for '1.5', 'true', '"1"', '[]', '{}', @{ $int{$f} };
}
bad('n', '5', like => qr/4/);
bad('logprobs', '21', like => qr/20/);

my %number = (temperature => [ -0.1, 2.1, 1e30 ], top_p => [ -0.1, 1.1 ], min_p => [ -0.1, 1.1 ],
    frequency_penalty => [ -2.1, 2.1 ], presence_penalty => [ -2.1, 2.1 ], repetition_penalty => [ 0, -1 ],
    length_penalty => []);
for my $f (sort keys %number) {
    bad($f, $_) for 'true', '"1"', '[]', '{}', @{ $number{$f} };
}

for my $f (qw(stream echo ignore_eos include_stop_str_in_output add_special_tokens return_token_ids
    parse_masks use_beam_search skip_special_tokens return_tokens_as_token_ids)) {
    bad($f, $_) for '1', '"true"', '[]', '0';
}

for my $f (qw(model user suffix request_id cache_salt truncation_side mode)) {
    bad($f, $_) for '1', 'true', '[]', '{}';
}
bad('mode', '"sideways"', like => qr/bidirectional/);
bad('mode', '""');
bad('mode', '"bidirectional\\u0000x"');
bad('truncation_side', '"left\\u0000"');
bad('model', '"glm-demo-9m\\u0000"');
bad('request_id', '"a\\u0000"');
bad('stop', '"a\\u0000"');
bad('stop', '["a", "\\u0000"]');
bad('truncation_side', '"up"');
bad('request_id', '"' . 'x' x 2000 . '"');

# Lists

bad('stop', $_) for '1', '""', '["a", ""]', '[1]', 'true', '{}', '[["a"]]', '[null]';
bad('stop', '["a","b","c","d"]', like => qr/3/);
bad('stop_token_ids', $_) for '1', '"a"', '[1.5]', '["1"]', '[-1]';
bad('allowed_token_ids', $_) for '1', '[]', '[1.5]', '["a"]';
bad('bad_words', $_) for '1';
bad('logit_bias', $_) for '1', '[]', '{"a":1}', '{"5":"1"}', '{"5":101}', '{"5":-101}',
    '{"-1":1}', '{"5":null}', '{"1.5":1}', '{"":1}';
bad('stream_options', $_) for '1', '[]', '"a"';
refused('{"prompt":"a","stream_options":{"include_usage":true}}', 400, 'stream_options without stream',
    param => 'stream_options');
refused('{"prompt":"a","stream":true,"stream_options":{"include_usage":1}}', 400, 'include_usage 1',
    param => qr/^stream_options/);
bad('response_format', $_) for '1', '"json"', '{}', '{"type":"xml"}', '{"type":1}', '{"type":"json_schema"}';
refused('{"prompt":"a","min_tokens":5,"max_tokens":3}', 400, 'min_tokens over max_tokens', param => 'min_tokens');
refused('{"prompt":"a","min_tokens":5,"min_gen_length":3}', 400, 'min_tokens and min_gen_length differ',
    param => qr/^min_/);
refused('{"prompt":"a","n":2,"best_of":1}', 400, 'best_of below n', param => 'best_of');

# The model

refused({ %$good, model => $_ }, 404, 'model ' . substr($_, 0, 20), param => 'model', code => 'model_not_found',
    type => 'invalid_request_error') for 'gpt-4', '', 'glm-demo-9m ', 'm' x 5000, "\x{1f600}", '../x';

# Nothing is echoed at length, in any field

$r = refused('{"prompt":"a","mode":"' . 'x' x 100000 . '"}', 400, 'a value of 100 KB', param => 'mode');
cmp_ok(length $r->{body}, '<', 2048, 'is not echoed');
$r = refused('{"prompt":"a","logit_bias":{"' . '\\u4f60' x 5000 . '":1}}', 400, 'a key of 30 KB', param => 'logit_bias');
cmp_ok(length $r->{body}, '<', 2048, 'is not echoed either');
for my $key ('k' x 20000, "a\nb[alert] x") {
    $c->request('POST', $URI, body => to_json({ %$good, $key => 1 }));
    is($c->response->{status}, 200, 'an unknown field of ' . length($key) . ' characters is ignored');
}
cmp_ok(length($t->read_file('error.log') =~ /^(.*kkkkk.*)$/m ? $1 : 'x' x 9999), '<', 2100,
    'and does not fill the log');
unlike($t->read_file('error.log'), qr/^b\[alert\]/m, 'nor breaks its lines');

# Method, path, size

for my $m (qw(GET PUT DELETE PATCH OPTIONS)) {
    $c->request($m, $URI, body => $m eq 'GET' ? undef : '');
    my $r = $c->response;
    check_error($r, 405, "$m is not allowed", type => 'invalid_request_error');
    like($r->{headers}{allow} // 'absent', qr/\bPOST\b/, "$m: Allow");
}
$c->request('HEAD', $URI);
$r = $c->response;
is($r && $r->{status}, 405, 'nor is HEAD');
for my $path ('/v1/nothing', '/', '/v1', '/v1/completions/', '/v1/completionsx', '/v1/models/none') {
    $c->request('GET', $path);
    check_error($c->response, 404, "no $path", type => 'invalid_request_error');
}
refused($good, 404, 'POST /v1/nothing', uri => '/v1/nothing');

my $big = $t->client;
$big->request('POST', $URI, body => to_json({ prompt => 'a' x 600000 }));
check_error($big->response, 413, 'a body over client_max_body_size', type => 'invalid_request_error',
    code => 'request_too_large');
$big = $t->client;
$big->request('POST', $URI, length => 600000);
check_error($big->response, 413, 'refused by its length alone');
$big = $t->client;
$big->request('POST', $URI, chunked => [ '{"prompt":"', ('a' x 50000) x 12, '"}' ]);
check_error($big->response, 413, 'refused in chunks');

# /tokenize, /detokenize

refused($_, 400, "tokenize $_", uri => '/tokenize', param => 'prompt')
    for '{}', '{"prompt":1}', '{"prompt":null}', '{"prompt":{}}', '{"prompt":true}';
refused('{"prompt":"a","add_special_tokens":1}', 400, 'add_special_tokens 1', uri => '/tokenize',
    param => 'add_special_tokens');
refused('{"prompt":"a","return_token_strs":"x"}', 400, 'return_token_strs "x"', uri => '/tokenize',
    param => 'return_token_strs');
refused('{"prompt":"a","model":"x"}', 404, 'another model', uri => '/tokenize', param => 'model');
refused($_, 400, "detokenize $_", uri => '/detokenize', param => 'tokens')
    for '{}', '{"tokens":1}', '{"tokens":["a"]}', '{"tokens":[1.5]}', '{"tokens":[-1]}', '{"tokens":[8192]}',
    '{"tokens":null}', '{"tokens":[true]}', '{"tokens":[9223372036854775807]}';
refused('{"tokens":[' . '[' x 100000, 400, 'nesting', uri => '/detokenize', param => undef);

# After all of it

$c->request('POST', $URI, body => to_json($good));
is(json($c->response->{body})->{choices}[0]{text}, 'Wo ist die Datei?', "same connection, after $refused refusals");
beside(20) if $other;
cmp_ok($beside, '>', 1, "$beside streams went by");
is($disturbed, 0, 'none of them was disturbed');
$t->idle(5, 'nothing is left');
$t->done;
