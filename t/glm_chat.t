# A chat whose messages reach the model in another form than the template says, or
# an answer that OpenAI's clients cannot read.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;

my $t = GLM::Test->new;
my $log = "$t->{dir}/submits";
$t->fake('--record', $log, '--max-seq', 512, '--default', 'tokens=2');
$t->conf(locations => <<'END')->run->ready;
        location / { glm_pass unix:%%SOCKET%%; }
        location = /metrics { glm_pass unix:%%SOCKET%%; glm_api metrics; }
        location /own/ {
            glm_pass unix:%%SOCKET%%;
            glm_chat_template "<${role}>$content</$role>$content\n" "<assistant>" stop=</assistant> "stop=\n\n";
        }
        location /bare/ { glm_pass unix:%%SOCKET%%; glm_chat_template $content ""; glm_max_prompt 20; }
END
my $URI = '/v1/chat/completions';
my @hello = ({ role => 'system', content => 'Be brief.' }, { role => 'user', content => 'Hello' });

my $at = length $t->read_file($log);
sub sent {
    my (%body) = @_;
    my $uri = delete $body{uri} // $URI;
    my $r = $t->post($uri, { messages => \@hello, %body });
    die "$r->{status} $r->{body}\n" if $r->{status} != 200;
    my $all = $t->read_file($log);
    my ($line) = split /\n/, substr $all, $at;
    $at = length $all;
    return json($line);
}

# The prompt

my $s = sent();
is($s->{2}, "system: Be brief.\nuser: Hello\nassistant:", 'the default template, as plain text');
ok(!exists $s->{1}, 'nothing in it is a mask');
is_deeply($s->{17}, [ "\nuser:" ], 'its stop');
is_deeply([ @$s{qw(op flags mode n max_tokens)} ], [ 1, 2, 0, 1, -1 ], 'max_tokens: what the context leaves');
is(sent(messages => [ { role => 'user', content => 'a [MASK] $role [gMASK]' } ])->{2},
    "user: a [MASK] \$role [gMASK]\nassistant:", 'masks and variables in a content are text');
is(sent(messages => [ map { { role => $_, content => "c\n" } } qw(developer tool assistant) ])->{2},
    "developer: c\n\ntool: c\n\nassistant: c\n\nassistant:", 'roles');
is(sent(messages => [ { role => 'user', content => [ { type => 'text', text => 'one' },
    { type => 'text', text => 'two' } ] } ])->{2}, "user: one\ntwo\nassistant:", 'parts');
is(sent(messages => [ { role => 'user', content => '', name => 'x' } ])->{2}, "user: \nassistant:", 'an empty one');
is(sent(add_generation_prompt => FALSE)->{2}, "system: Be brief.\nuser: Hello\n", 'add_generation_prompt false');
my @open = (@hello, { role => 'assistant', content => 'Well,' });
is(sent(messages => \@open, continue_final_message => TRUE)->{2},
    "system: Be brief.\nuser: Hello\nassistant: Well,", 'continue_final_message');
is(sent(uri => "/own$URI")->{2}, "<system>Be brief.</system>Be brief.\n<user>Hello</user>Hello\n<assistant>",
    'a template of one\'s own');
is_deeply(sent(uri => "/own$URI", stop => [ 'x' ])->{17}, [ 'x', '</assistant>', "\n\n" ], 'with its stops');
is(sent(uri => "/own$URI", messages => \@open, continue_final_message => TRUE)->{2},
    "<system>Be brief.</system>Be brief.\n<user>Hello</user>Hello\n<assistant>Well,</assistant>Well,",
    'up to its last $content');
$s = sent(uri => "/bare$URI");
is_deeply([ $s->{2}, $s->{17} ], [ 'Be brief.Hello', undef ], 'a bare one has no stops');

# Fields

is(sent(max_completion_tokens => 9)->{max_tokens}, 9, 'max_completion_tokens');
is(sent(max_completion_tokens => 9, max_tokens => 5)->{max_tokens}, 9, 'wins');
is(sent(max_tokens => 5)->{max_tokens}, 5, 'max_tokens');
$s = sent(temperature => 0, seed => 5, presence_penalty => 1, n => 2, priority => 3, logprobs => TRUE,
    top_logprobs => 4, logit_bias => { 5 => 2 });
is_deeply([ @{ $s->{16} }{qw(temperature seed presence logprobs)}, @$s{qw(n priority)}, $s->{19} ],
    [ 0, 5, 1, 4, 2, 3, { 5 => 2 } ], 'what a completion has');
is(sent(logprobs => TRUE)->{16}{logprobs}, 0, 'logprobs true');
is(sent(logprobs => FALSE)->{16}{logprobs}, -1, 'and false');
is(sent(tools => [], tool_choice => undef)->{n}, 1, 'no tools');
is(sent(tools => [ { type => 'function' } ], tool_choice => 'none')->{n}, 1, 'tools that are not to be called');

# The answer

my $say = sub { [ { role => 'user', content => "fake: @_" } ] };
my $r = $t->post($URI, { messages => $say->('tokens=2 text=Hi.'), request_id => 'abc' });
my $j = json($r->{body});
is_deeply([ sort keys %$j ], [ qw(choices created id model object system_fingerprint usage) ], 'keys');
is_deeply([ @$j{qw(id object model)} ], [ 'chatcmpl-abc', 'chat.completion', 'fake-model' ], 'id, object');
is_deeply($j->{choices}, [ { index => 0, message => { role => 'assistant', content => 'Hi.Hi.', refusal => undef },
    logprobs => undef, finish_reason => 'stop', stop_reason => undef } ], 'the choice') or diag($r->{body});
my $n = length "user: fake: tokens=2 text=Hi.\nassistant:";
is_deeply($j->{usage}, { prompt_tokens => $n + 2, completion_tokens => 2, total_tokens => $n + 4,
    prompt_tokens_details => { cached_tokens => 0 } }, 'usage');
sub ask {
    my (%body) = @_;
    my $r = $t->post($URI, \%body);
    die "$r->{status} $r->{body}\n" if $r->{status} != 200;
    return json($r->{body});
}
$j = ask(messages => $say->('tokens=2 bychoice'), n => 2);
is_deeply([ map { [ $_->{index}, $_->{message}{content} ] } @{ $j->{choices} } ],
    [ [ 0, 'c0.0 c0.1 ' ], [ 1, 'c1.0 c1.1 ' ] ], 'n');
is(ask(messages => $say->('tokens=2 stopindex=0'))->{choices}[0]{stop_reason}, undef,
    'the template\'s stop is an end like any other');
is(ask(messages => $say->('tokens=2 stopindex=0'), stop => 'S')->{choices}[0]{stop_reason}, 'S', 'one\'s own is told');
is(ask(messages => $say->('tokens=2 stopindex=1'), stop => 'S')->{choices}[0]{stop_reason}, undef, 'apart');
$j = ask(messages => [ @{ $say->('tokens=1 text=x') }, { role => 'assistant', content => 'So: ' } ], echo => TRUE,
    continue_final_message => TRUE);
is($j->{choices}[0]{message}{content}, 'So: x', 'echo of an assistant\'s message');
is(ask(messages => $say->('tokens=1 text=x'), echo => TRUE)->{choices}[0]{message}{content}, 'x',
    'not of a user\'s');

my $lp = ask(messages => $say->('utf8 tokens=5'), logprobs => TRUE, top_logprobs => 2)->{choices}[0]{logprobs};
is_deeply([ sort keys %$lp ], [ qw(content refusal) ], 'logprobs');
is(scalar @{ $lp->{content} }, 5, 'an entry a token');
is_deeply($lp->{content}[0], { token => 'bytes:\\xc3', logprob => -0.25, bytes => [ 0xc3 ], top_logprobs => [
    { token => 'bytes:\\xc3', logprob => -0.25, bytes => [ 0xc3 ] },
    { token => 't1001 ', logprob => -1.25, bytes => [ unpack 'C*', 't1001 ' ] } ] }, 'an entry');
is(pack('C*', map { @{ $_->{bytes} } } @{ $lp->{content} }), "\xc3\xa9\xe6\xbc\xa2", 'bytes rejoin characters');
is_deeply(ask(messages => $say->('tokens=1'), logprobs => TRUE)->{choices}[0]{logprobs}{content}[0]{top_logprobs}, [],
    'top_logprobs 0');
$j = ask(messages => $say->('tokens=1'), return_token_ids => TRUE)->{choices}[0];
is_deeply([ $j->{token_ids}, scalar @{ $j->{prompt_token_ids} } ], [ [ 256 ], 2 + length "user: fake: tokens=1\nassistant:" ],
    'return_token_ids');
$j = ask(messages => $say->('tokens=1'), prompt_logprobs => 0);
is(scalar @{ $j->{prompt_logprobs} }, length "user: fake: tokens=1\nassistant:", 'prompt_logprobs beside the choices');

# Streams

sub chunks {
    my (%body) = @_;
    my $c = $t->post($URI, { %body, stream => TRUE }, start => 1);
    my $r = $c->read_head;
    die "status $r->{status}\n" if $r->{status} != 200;
    return data_events($c->events);
}
my @c;
is_once {
    @c = chunks(messages => $say->('tokens=3 delay=5 text=ab'), stream_options => { include_usage => TRUE });
    [ map { $_->{object} } @c ]
} [ ('chat.completion.chunk') x 6 ], 'chunks';
is(scalar(grep { $_->{id} ne $c[0]{id} || $_->{created} != $c[0]{created} } @c), 0, 'of one answer');
is_deeply([ map { $_->{choices}[0]{delta} } @c[ 0 .. 4 ] ], [ { role => 'assistant', content => '' },
    ({ content => 'ab' }) x 3, {} ], 'the role first, {} last');
is_deeply([ map { $_->{choices}[0]{finish_reason} } @c[ 0 .. 4 ] ], [ (undef) x 4, 'stop' ], 'finish_reason');
is_deeply([ map { $_->{usage} } @c[ 0 .. 4 ] ], [ (undef) x 5 ], 'usage null');
is_deeply([ $c[5]{choices}, $c[5]{usage}{completion_tokens} ], [ [], 3 ], 'then told');
is_once {
    my %seen;
    for (map { $_->{choices}[0] } chunks(messages => $say->('tokens=3 delay=5 bychoice'), n => 2)) {
        push @{ $seen{ $_->{index} } }, $_->{delta}{role} // $_->{delta}{content} // $_->{finish_reason};
    }
    \%seen
} +{ map { $_ => [ 'assistant', "c$_.0 ", "c$_.1 ", "c$_.2 ", 'stop' ] } 0, 1 }, 'n streams';
@c = chunks(messages => $say->('tokens=0'));
is_deeply([ map { $_->{choices}[0]{delta} } @c ], [ { role => 'assistant', content => '' }, {} ], 'no token at all');
is_once { [ map { $_->{choices}[0]{delta}{content} } chunks(messages => $say->('tokens=6 delay=5 text=z'), stream_interval => 4) ] }
    [ '', 'z', 'zzzz', 'z', undef ], 'stream_interval';
@c = chunks(messages => $say->('tokens=4 utf8 delay=5'), logprobs => TRUE);
is(join('', map { $_->{choices}[0]{delta}{content} // '' } @c), "\x{e9}", 'text is whole');
is(join(' ', map { @{ $_->{bytes} } } map { @{ ($_->{choices}[0]{logprobs} // {})->{content} // [] } } @c),
    '195 169 230 188', 'every token is told once');
my $c = $t->post($URI, { messages => $say->('tokens=9 delay=60000'), stream => TRUE }, start => 1);
$c->read_head;
my $first = $c->event;
is(json($first->{data} // '{}')->{choices}[0]{delta}{role}, 'assistant', 'the role comes before the first token');
$c->close;
check_error($t->post($URI, { messages => $say->('error=400 param=prompt'), stream => TRUE }), 400,
    'a prompt that the engine refuses', param => 'messages');

# Refused

my @bad = (
    [ {}, 'messages' ], [ { messages => [] }, 'messages' ], [ { messages => 'a' }, 'messages' ],
    [ { messages => [ 1 ] }, 'messages' ], [ { messages => [ { content => 'a' } ] }, 'messages' ],
    [ { messages => [ { role => 'king', content => 'a' } ] }, 'messages' ],
    [ { messages => [ { role => 'user' } ] }, 'messages' ],
    [ { messages => [ { role => 'user', content => 1 } ] }, 'messages' ],
    [ { messages => [ { role => 'user', content => "a\0" } ] }, 'messages' ],
    [ { messages => [ { role => 'user', content => [ { type => 'image_url' } ] } ] }, 'messages' ],
    [ { messages => [ { role => 'user', content => [ 'a' ] } ] }, 'messages' ],
    (map { [ { messages => \@hello, @$_ }, $_->[0] ] } [ tools => [ {} ] ], [ tools => 1 ], [ functions => [ {} ] ],
        [ tool_choice => 'auto' ], [ tool_choice => {} ], [ top_logprobs => 1 ], [ top_logprobs => 21, logprobs => TRUE ],
        [ logprobs => 1 ], [ max_completion_tokens => -1 ], [ n => 0 ], [ echo => 1 ],
        [ continue_final_message => TRUE, add_generation_prompt => TRUE ]),
);
check_error($t->post($URI, $_->[0]), 400, to_json($_->[0]), param => $_->[1]) for @bad;
check_error($t->post("/bare$URI", { messages => [ map { { role => 'user', content => '1234567' } } 1 .. 3 ] }), 400,
    'messages over glm_max_prompt', param => 'messages', like => qr/20/);
check_error($t->post($URI, { messages => \@hello, chat_template => 'x' }), 501, 'chat_template',
    param => 'chat_template');
check_error($t->get($URI), 405, 'GET');

# /tokenize

$at = length $t->read_file($log);
my $p = "system: Be brief.\nuser: Hello\nassistant:";
my $tok = json($t->post('/tokenize', { messages => \@hello, add_special_tokens => FALSE })->{body});
is_deeply($tok->{tokens}, [ unpack 'C*', $p ], '/tokenize of messages') || diag(to_json($tok));
$tok = json($t->post('/tokenize', { messages => \@hello, add_special_tokens => FALSE, add_generation_prompt => FALSE })
    ->{body});
is($tok->{count}, length("system: Be brief.\nuser: Hello\n"), 'without the final part');
check_error($t->post('/tokenize', { messages => \@hello, prompt => 'a' }), 400, 'a prompt and messages', param => 'messages');
check_error($t->post('/tokenize', { messages => [] }), 400, 'no messages', param => 'messages');

# /tokenizer_info

for my $path ('/tokenizer_info', '/v1/tokenizer_info') {
    my $r = $t->get($path);
    is($r->{status}, 200, $path);
    my $j = json($r->{body});
    is_deeply([ sort keys %$j ], [ qw(bos_token chat_template eos_token pad_token tokenizer_class) ], 'keys');
    is($j->{chat_template}, "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
        . '{% if add_generation_prompt %}assistant:{% endif %}', 'the template in Jinja');
    is($j->{eos_token}, undef, 'the fake engine has no such token');
}
is(json($t->get('/own/tokenizer_info')->{body})->{chat_template},
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}</{{ message.role }}>{{ message.content }}\n"
    . '{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}', 'another template');
is($t->get('/tokenizer_info', method => 'HEAD')->{status}, 200, 'HEAD');
check_error($t->post('/tokenizer_info', '{}'), 405, 'POST');

# The directive

sub conf {
    my ($text) = @_;
    my $c = GLM::Test->new;
    $c->conf(locations => "location / { glm_pass unix:/x; $text }");
    my ($status, $out) = $c->nginx_test;
    return "$status $out";
}
like(conf('glm_chat_template "$role: $content" "x:" "stop=\n";'), qr/^0 /, 'a good one');
like(conf('glm_chat_template "$content" "";'), qr/^0 /, 'a short one');
like(conf('glm_chat_template "$content";'), qr/^1 .*invalid number of arguments/s, 'one part');
like(conf('glm_chat_template "$role" "x";'), qr/^1 .*\$content/s, 'no $content');
like(conf('glm_chat_template "$contents" "x";'), qr/^1 .*unknown variable/s, 'another variable');
like(conf('glm_chat_template "${content" "x";'), qr/^1 /s, 'an open brace');
like(conf('glm_chat_template "$content" "$role:";'), qr/^1 .*final/s, 'a variable in the final part');
like(conf('glm_chat_template "$content" "x" "x";'), qr/^1 .*invalid parameter/s, 'no stop');
like(conf('glm_chat_template "$content" "x" "stop=";'), qr/^1 .*invalid parameter/s, 'an empty stop');
like(conf("glm_chat_template \"\$content\xff\" x;"), qr/^1 .*UTF-8/s, 'no UTF-8');
like(conf('glm_chat_template "$content" x; glm_chat_template "$content" x;'), qr/^1 .*duplicate/s, 'twice');

$t->idle(5, 'nothing is left');
$t->done;
