# A beam search that is asked for and not done, or the other way round, candidates that
# come in pieces or without their score, or fields that contradict it taken in silence.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;

my $URI = '/v1/completions';
my $t = GLM::Test->new;
my $log = "$t->{dir}/submits";
$t->fake('--record', $log, '--max-seq', 2000, '--default', 'tokens=2')->run->ready;

# The sampling of the SUBMIT of a request that is accepted, and the answer
my $at = 0;
sub sent {
    my (%body) = @_;
    my $r = $t->post($URI, { prompt => 'a', %body });
    die "$r->{status} $r->{body}\n" if $r->{status} != 200;
    my $all = $t->read_file($log);
    my ($line) = split /\n/, substr $all, $at;
    $at = length $all;
    my $m = json($line);
    return { n => $m->{n}, %{ $m->{16} } };
}
sub looks { my ($s) = @_; return [ @$s{qw(n beams temperature length_penalty no_repeat_ngram)} ] }

# How wide

is_deeply(looks(sent()), [ 1, 1, 1, 1, 0 ], 'no beams: temperature 1');
is_deeply(looks(sent(num_beams => 4)), [ 1, 4, 0, 1, 0 ], 'num_beams: temperature 0');
is_deeply(looks(sent(num_beams => 4, n => 3)), [ 3, 4, 0, 1, 0 ], 'n of them');
is_deeply(looks(sent(use_beam_search => TRUE, n => 3)), [ 3, 3, 0, 1, 0 ], 'use_beam_search: as wide as n');
is_deeply(looks(sent(use_beam_search => TRUE, n => 2, num_beams => 5)), [ 2, 5, 0, 1, 0 ], 'num_beams is before that');
is_deeply(looks(sent(use_beam_search => TRUE)), [ 1, 1, 0, 1, 0 ], 'of one beam: greedy');
is_deeply(looks(sent(use_beam_search => FALSE, num_beams => 1)), [ 1, 1, 1, 1, 0 ], 'neutral values');
is_deeply(looks(sent(num_beams => 2, temperature => 0, best_of => 1)), [ 1, 2, 0, 1, 0 ], 'temperature 0, best_of 1');
is_deeply(looks(sent(num_beams => 2, length_penalty => -0.5, no_repeat_ngram_size => 3)), [ 1, 2, 0, -0.5, 3 ],
    'length_penalty, no_repeat_ngram_size');
is(sent(num_beams => 2, min_gen_length => 5)->{min_tokens}, 5, 'min_gen_length');

# Candidates: best first, with a score, plain and each in one chunk

my %B = (prompt => 'fake: tokens=5 bychoice delay=10', n => 2, num_beams => 3);
my $text = sub { my $c = shift; return join '', map { "c$c.$_ " } 0 .. 4 };
my $plain = $t->complete(%B);
is_deeply([ map { [ @$_{qw(index text score finish_reason)} ] } @{ $plain->{choices} } ],
    [ [ 0, $text->(0), -1.5, 'stop' ], [ 1, $text->(1), -3, 'stop' ] ], 'two candidates') || diag(to_json($plain));
ok(!exists $t->complete(prompt => 'a')->{choices}[0]{score}, 'no score without beams');
ok(!exists $t->complete(prompt => 'a', use_beam_search => TRUE)->{choices}[0]{score}, 'nor with one beam');
my @c = $t->stream(%B, stream_options => { include_usage => TRUE });
is_deeply((pop @c)->{usage}, $plain->{usage}, 'stream: usage');
is_deeply([ map { @{ $_->{choices} } } @c ], $plain->{choices}, 'stream: a chunk a candidate, as plain');
my $j = $t->complete(%B, prompt => [ 'fake: tokens=1 bychoice', 'fake: tokens=2 bychoice' ]);
is_deeply([ map { [ @$_{qw(index text score)} ] } @{ $j->{choices} } ],
    [ [ 0, 'c0.0 ', -1.5 ], [ 1, 'c1.0 ', -3 ], [ 2, 'c0.0 c0.1 ', -1.5 ], [ 3, 'c1.0 c1.1 ', -3 ] ], 'two prompts');

# Chat

my @m = (messages => [ { role => 'user', content => 'fake: tokens=2 bychoice' } ], n => 2, use_beam_search => TRUE, max_tokens => 9);
my $r = $t->post('/v1/chat/completions', { @m });
is_deeply([ map { [ $_->{message}{content}, $_->{score} ] } @{ json($r->{body})->{choices} } ],
    [ [ 'c0.0 c0.1 ', -1.5 ], [ 'c1.0 c1.1 ', -3 ] ], 'chat');
$at = length $t->read_file($log);
$r = $t->post('/v1/chat/completions', { @m });
ok(!exists json(substr $t->read_file($log), $at)->{17}, 'chat: the template\'s stops are left out');
my $c = $t->post('/v1/chat/completions', { @m, stream => TRUE }, start => 1);
$c->read_head;
my @d = map { $_->{choices}[0] } data_events($c->events);
is_deeply([ map { $_->{delta}{content} } grep { length($_->{delta}{content} // '') } @d ], [ 'c0.0 c0.1 ', 'c1.0 c1.1 ' ],
    'chat, stream: a chunk a candidate');
is_deeply([ map { $_->{score} } grep { $_->{finish_reason} } @d ], [ -1.5, -3 ], 'chat, stream: scores');

# What came with the acceptance, and whose end did not, is told once, at the end

for (1 .. 3) {
    $c = $t->post('/v1/chat/completions', { @m, messages => [ { role => 'user', content => 'fake: tokens=3 hangat=2 bychoice' } ],
        stream => TRUE }, start => 1);
    $c->read_head;
    $c->event for 1 .. 2;
    @d = map { json($_->{data})->{choices}[0]{delta} } $c->events(0.3);
    is_deeply(\@d, [ ({ role => 'assistant', content => '' }) x 2 ], 'chat: of an unfinished candidate the role only');
    $c->close;
}

# Blanks: the first candidate tells all but the last

my %I = (prompt => 'a [MASK] b [MASK] c fake: tokens=2 bychoice', n => 2, num_beams => 2);
$j = json($t->post('/v1/infill', \%I)->{body});
is_deeply([ map { [ $_->{score}, map { $_->{text} } @{ $_->{blanks} } ] } @{ $j->{choices} } ],
    [ [ -1.5, 'c0.0 c0.1 ', 'c0.0 c0.1 ' ], [ -3, 'c0.0 c0.1 ', 'c1.0 c1.1 ' ] ], 'blanks');
is($j->{choices}[1]{text}, 'a c0.0 c0.1  b c1.0 c1.1  c fake: tokens=2 bychoice', 'and the text of each');
$c = $t->post('/v1/infill', { %I, stream => TRUE }, start => 1);
$c->read_head;
@d = map { $_->{choices}[0] } data_events($c->events);
is_deeply([ map { [ @$_{qw(index blank score)} ] } @d ],
    [ [ 0, 0, undef ], [ 0, 1, undef ], [ 1, 1, undef ], [ 0, undef, -1.5 ], [ 1, undef, -3 ] ], 'blanks, stream') || diag(to_json(\@d));

# What excludes it

for ([ temperature => 0.5 ], [ seed => 1 ], [ seed => 0 ], [ best_of => 2 ]) {
    my ($k, $v) = @$_;
    check_error($t->post($URI, { prompt => 'a', num_beams => 2, $k => $v }), 400, "num_beams and $k $v", param => $k,
        like => qr/beam/);
    check_error($t->post($URI, { prompt => 'a', use_beam_search => TRUE, $k => $v }), 400, "use_beam_search and $k $v",
        param => $k, like => qr/beam/);
}
check_error($t->post($URI, { prompt => 'a', num_beams => 2, n => 3 }), 400, 'n above num_beams', param => 'n', like => qr/2.*3/);
check_error($t->post($URI, { prompt => 'a', use_beam_search => TRUE, n => 17 }), 400, '17 by n', param => 'n', like => qr/16/);
for ([ num_beams => 0 ], [ num_beams => 17 ], [ num_beams => 1000000 ], [ num_beams => 1.5 ], [ num_beams => '2' ],
    [ no_repeat_ngram_size => -1 ], [ length_penalty => 'x' ], [ length_penalty => 101 ], [ length_penalty => -100.5 ], [ use_beam_search => 1 ])
{
    my ($k, $v) = @$_;
    check_error($t->post($URI, { prompt => 'a', $k => $v }), 400, "$k $v", param => $k);
}
check_error($t->post($URI, { prompt => 'a', num_beams => 2, min_tokens => 2, min_gen_length => 3 }), 400, 'two min_tokens',
    param => 'min_gen_length');
check_error($t->post($URI, { prompt => 'a', no_repeat_ngram_size => 2 }), 400, 'no_repeat_ngram_size without beams',
    param => 'no_repeat_ngram_size', like => qr/beam/);
check_error($t->post($URI, { prompt => 'fake: error=501 code=not_implemented param=num_beams', num_beams => 2 }), 501,
    'an engine that cannot', param => 'num_beams');

# A client that leaves while the search runs

$c = $t->post($URI, { %B, prompt => 'fake: tokens=50 delay=100', max_tokens => 50, stream => TRUE }, start => 1);
$c->read_head;
$c->close;
$t->idle(10, 'a client that leaves frees all');
$t->done;
