# An endpoint beside completions that changes its shape, or a health or metrics page
# that tells something else than the truth.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;

my $t = GLM::Test->new->engine('--max-num-seqs', 2)->run->ready;

# Models

for my $path ('/v1/models', '/v1/models/glm-demo-9m') {
    my $r = $t->get($path);
    is($r->{status}, 200, $path);
    like($r->{headers}{'content-type'}, qr{^application/json}, "$path: content type");
    ok($r->{headers}{'x-request-id'}, "$path: x-request-id");
    my $j = json($r->{body});
    if ($path =~ /models$/) {
        is_deeply([ sort keys %$j ], [ qw(data object) ], 'keys of the list');
        is($j->{object}, 'list', 'object');
        is(scalar @{ $j->{data} }, 1, 'one model');
        $j = $j->{data}[0];
    }
    cmp_ok(abs(delete($j->{created}) - time), '<', 600, "$path: created");
    ok(length delete $j->{owned_by}, "$path: owned_by");
    is_deeply($j, { id => 'glm-demo-9m', object => 'model', root => 'glm-demo-9m', parent => undef,
        max_model_len => 1024, permission => [] }, "$path: the rest");
}
check_error($t->get('/v1/models/gpt-4'), 404, 'another model', code => 'model_not_found', param => 'model');
is($t->get('/v1/models', method => 'HEAD')->{status}, 200, 'HEAD /v1/models');
my $r = $t->get('/v1/models', method => 'HEAD');
is($r->{body}, '', 'without a body');
check_error($t->post('/v1/models', '{}'), 405, 'POST /v1/models', type => 'invalid_request_error');
check_error($t->get('/tokenize'), 405, 'GET /tokenize');
check_error($t->post('/health', '{}'), 405, 'POST /health');

# Health, version

$r = $t->get('/health');
is($r->{status}, 200, '/health');
is($t->get('/health', method => 'HEAD')->{status}, 200, 'HEAD /health');
is($t->get('/ping')->{status}, 200, '/ping');
$r = $t->get('/version');
is($r->{status}, 200, '/version');
like(json($r->{body})->{version} // '', qr/\d/, 'has a version');

# Tokenize, detokenize

sub tokenize {
    my (%body) = @_;
    my $r = $t->post('/tokenize', \%body);
    return $r->{status} == 200 ? json($r->{body}) : { fault => "$r->{status} $r->{body}" };
}
my $j = tokenize(prompt => 'English: Where is the file? German:');
is_deeply($j, { count => 11, max_model_len => 1024, token_strs => undef,
    tokens => [ 22, 8, 5, 5242, 26, 10, 126, 143, 42, 8, 7809 ] }, '/tokenize');
is_deeply(json($t->post('/v1/tokenize', { prompt => 'English: Where is the file? German:' })->{body}), $j,
    '/v1/tokenize');
$j = tokenize(prompt => 'English: Where is the file?', add_special_tokens => FALSE, return_token_strs => TRUE);
is_deeply($j->{tokens}, [ 22, 8, 5, 5242, 26, 10, 126, 143 ], 'add_special_tokens false');
is($j->{count}, 8, 'count');
is_deeply([ scalar @{ $j->{token_strs} }, join '', @{ $j->{token_strs} } ],
    [ 8, ' English: Where is the file?' ], 'token_strs') || diag(to_json($j));
is_deeply(tokenize(prompt => 'English: The file is open. German: [MASK]', add_special_tokens => FALSE)->{tokens},
    [ 22, 8, 84, 126, 26, 553, 7, 42, 8, 7808 ], 'a mask is one id');
is_deeply(tokenize(prompt => 'English: The file is open. German: [MASK]')->{tokens},
    [ 22, 8, 84, 126, 26, 553, 7, 42, 8, 7808 ], 'and needs no other');
my $n = tokenize(prompt => '[MASK]', parse_masks => FALSE, add_special_tokens => FALSE);
ok(!grep({ $_ == 7808 } @{ $n->{tokens} }), 'parse_masks false: it is text');
cmp_ok($n->{count}, '>', 1, 'of several ids');
for my $name ('<sop>', 'sop', '[sop]', '<eop>', '</s>x', 'eop') {
    my @ids = @{ tokenize(prompt => $name, add_special_tokens => FALSE)->{tokens} };
    is_deeply([ grep { $_ == 2 || ($_ >= 7809 && $_ < 7816) } @ids ], [], "$name is text");
}
is_deeply(tokenize(prompt => '', add_special_tokens => FALSE)->{tokens}, [], 'an empty text');
is_deeply(tokenize(prompt => '')->{tokens}, [7809], 'an empty text, with the mask that a prompt gets');

my $eos = json($t->get('/tokenizer_info')->{body})->{eos_token};
is($eos, '</s>', '/tokenizer_info: the end token');
is_deeply(tokenize(prompt => $eos)->{tokens}, [ 2 ], 'whose name is one id');

sub detokenize {
    my $r = $t->post('/detokenize', { tokens => [ @_ ] });
    return $r->{status} == 200 ? json($r->{body}) : { fault => "$r->{status} $r->{body}" };
}
is_deeply(detokenize(3252, 230, 94, 1157, 143), { prompt => 'Wo ist die Datei?' }, '/detokenize');
is(detokenize(22, 7808, 7813, 7812, 2, 143)->{prompt}, 'English[MASK]?', 'masks by name, other control ids not');
is(detokenize()->{prompt}, '', 'no tokens');
is(detokenize(7896 + 0xe4, 7896 + 0xbd)->{prompt}, "\x{fffd}\x{fffd}", 'broken bytes');
for my $text ("Wo ist\n\tdie   Datei?", "\x{4f60}\x{597d} \x{1f600}!", "def f(x):\n    return \"\\\"\"", 'a' x 3000) {
    my $j = tokenize(prompt => $text, add_special_tokens => FALSE);
    is(detokenize(@{ $j->{tokens} })->{prompt}, $text, 'there and back: ' . to_json(substr $text, 0, 12));
}
my $long = tokenize(prompt => 'file and folder, ' x 5000, add_special_tokens => FALSE);
cmp_ok($long->{count}, '>', 15000, 'a text longer than the context');
is(detokenize(@{ $long->{tokens} })->{prompt}, substr('file and folder, ' x 5000, 0, -1), 'and back');

# Metrics: the text format

sub check_metrics {
    my ($name) = @_;
    my $r = $t->get('/metrics');
    is($r->{status}, 200, "$name: /metrics");
    is($r->{headers}{'content-type'}, 'text/plain; version=0.0.4; charset=utf-8', "$name: content type");
    my (%type, %help, %seen, %closed, %value, @bad, $last);
    $last = '';
    push @bad, 'no newline at the end' if $r->{body} !~ /\n\z/;
    for (split /\n/, $r->{body}) {
        if (/^# (TYPE|HELP) ([a-zA-Z_:][a-zA-Z0-9_:]*) (.+)$/) {
            my ($what, $name, $text) = ($1, $2, $3);
            my $h = $what eq 'TYPE' ? \%type : \%help;
            push @bad, "twice: $_" if exists $h->{$name};
            push @bad, "a type of its own: $_"
                if $what eq 'TYPE' && $text !~ /^(counter|gauge|histogram|summary|untyped)$/;
            push @bad, "after its samples: $_" if $value{$name};
            $h->{$name} = $text;
        } elsif (/^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{(?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\[\\n"])*",?)*\})? (-?[0-9.]+(?:e[-+]?\d+)?|NaN|[-+]Inf)$/) {
            my ($full, $labels, $v) = ($1, $2 // '', $3);
            (my $base = $full) =~ s/_(bucket|sum|count)$// unless $type{$full};
            $base = $full if $type{$full};
            push @bad, "no TYPE: $_" unless $type{$base};
            push @bad, "no HELP: $_" unless $help{$base};
            push @bad, "series twice: $_" if $seen{"$full$labels"}++;
            push @bad, "counter without _total: $_" if ($type{$base} // '') eq 'counter' && $full !~ /_total$/;
            push @bad, "not together: $_" if $base ne $last && $closed{$base};
            $closed{$last} = 1 if $base ne $last;
            $last = $base;
            push @{ $value{$base} }, [ $full, $labels, $v ];
        } else {
            push @bad, "neither comment nor sample: $_";
        }
    }
    for my $base (grep { $type{$_} eq 'histogram' } keys %type) {
        my (%prev, %inf, %count);
        for (@{ $value{$base} // [] }) {
            my ($full, $labels, $v) = @$_;
            if ($full =~ /_bucket$/) {
                my ($le) = $labels =~ /le="([^"]+)"/ or push @bad, "bucket without le: $full$labels";
                (my $rest = $labels) =~ s/,?le="[^"]+"//;
                push @bad, "not cumulative: $full$labels" if $v < ($prev{$rest} // 0);
                $prev{$rest} = $v;
                $inf{$rest} = $v if $le eq '+Inf';
            } elsif ($full =~ /_count$/) {
                $count{$labels} = $v;
            }
        }
        push @bad, "$base: no +Inf bucket or no count" if !%inf || !%count;
        push @bad, "$base: +Inf is not the count" if join(',', sort { $a <=> $b } values %inf) ne join(',', sort { $a <=> $b } values %count);
    }
    is_deeply([ @bad[ 0 .. ($#bad > 5 ? 5 : $#bad) ] ], [], "$name: the text format");
    return \%value;
}

my $before = check_metrics('idle');
for my $m (qw(num_requests_running num_requests_waiting kv_cache_usage_perc)) {
    ok($before->{"glm:$m"} && $before->{"vllm:$m"}, "$m under both names");
    is($before->{"glm:$m"}[0][2] + 0, 0, "$m is 0");
    like($before->{"vllm:$m"}[0][1], qr/model_name="glm-demo-9m"/, "$m: model_name");
}
is($before->{'glm:engine_up'}[0][2], 1, 'engine_up');

my @busy = map { $t->post('/v1/completions', { prompt => "number $_", stream => TRUE, ignore_eos => TRUE,
    max_tokens => 950 }, start => 1) } 1 .. 5;
$_->read_head for @busy[ 0, 1 ];
my %seen;
wait_for {
    my %now = map { $_ => $t->stat($_) } qw(num_requests_running num_requests_waiting kv_cache_usage_perc);
    $seen{$_} = $now{$_} > ($seen{$_} // 0) ? $now{$_} : $seen{$_} // 0 for keys %now;
    $seen{num_requests_running} == 2 && $seen{num_requests_waiting} >= 2;
} 5;
is($seen{num_requests_running}, 2, 'two run');
cmp_ok($seen{num_requests_waiting}, '>=', 2, 'others wait');
ok($seen{kv_cache_usage_perc} > 0 && $seen{kv_cache_usage_perc} <= 1, 'the cache is in use, as a share')
    || diag($seen{kv_cache_usage_perc});
is($t->get('/health')->{status}, 200, 'busy is not sick');
check_metrics('busy');
$_->read_head for @busy[ 2 .. 4 ];
is((data_events($_->events))[-1]{choices}[0]{finish_reason}, 'length', 'a stream ends') for @busy;
# Aliases: at their level and below, nowhere else

my $alias = GLM::Test->new->engine->conf(
    server => 'glm_model_alias gpt-3.5-turbo-instruct; glm_model_alias text-davinci-003;',
    locations => '
        location / { glm_pass unix:%%SOCKET%%; }
        location /own/ { glm_pass unix:%%SOCKET%%; glm_model_alias mine; }')->run->ready;
is_deeply([ map { "$_->{id} $_->{root}" } @{ json($alias->get('/v1/models')->{body})->{data} } ],
    [ map { "$_ glm-demo-9m" } 'glm-demo-9m', 'gpt-3.5-turbo-instruct', 'text-davinci-003' ], 'aliases are listed');
is(json($alias->get('/v1/models/text-davinci-003')->{body})->{id}, 'text-davinci-003', 'one alone');
my %few = (prompt => 'a', max_tokens => 1);
is($alias->complete(%few, model => 'text-davinci-003')->{model}, 'glm-demo-9m', 'a request to an alias');
is($alias->post('/own/v1/completions', { %few, model => 'mine' })->{status}, 200, 'a location with its own');
check_error($alias->post('/own/v1/completions', { %few, model => 'text-davinci-003' }), 404, 'in place of the others',
    code => 'model_not_found', param => 'model');
check_error($alias->post('/v1/completions', { %few, model => 'mine' }), 404, 'which nobody else has',
    code => 'model_not_found', param => 'model');

$t->idle(5, 'all gauges return to 0');
my $after = check_metrics('after');
if ($after->{'glm:generation_tokens_total'}) {
    is($after->{'glm:generation_tokens_total'}[0][2] - $before->{'glm:generation_tokens_total'}[0][2], 5 * 950,
        'generation_tokens_total counts');
}

$t->done;
