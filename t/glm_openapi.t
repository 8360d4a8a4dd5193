# A description that is not there, is not that of conf/, or says other names and
# statuses than the module's own table.

use strict;
use warnings;
use Test::More;
use FindBin;
use lib "$FindBin::Bin/lib";
use GLM::Test;

my $t = GLM::Test->new;

SKIP: {
    skip 'no PyYAML', 1 if system "python3 -c 'import yaml' 2>/dev/null";
    my $out = qx('$t->{tree}/tools/openapi.py' --check 2>&1);
    is($out, '', 'the header is that of conf/openapi.yaml');
}

# Answered without an engine, and where it is named only.

$t->conf(absent => 1, locations => <<'END')->engine->run;
    location / { glm_pass unix:%%SOCKET%%; }
    location /llm/ { glm_pass unix:%%SOCKET%%; glm_api completions openapi; }
    location /narrow/ { glm_pass unix:%%SOCKET%%; glm_api completions; }
END
my $r = $t->get('/openapi.json');
is($r->{status}, 200, '/openapi.json');
like($r->{headers}{'content-type'}, qr{^application/json}, 'content type');
ok($r->{headers}{'x-request-id'}, 'x-request-id');
is($t->get('/llm/openapi.json')->{body}, $r->{body}, 'under a prefix');
check_error($t->get('/narrow/openapi.json'), 404, 'not where glm_api leaves it out');
check_error($t->post('/openapi.json', '{}'), 405, 'POST');
is($t->get('/openapi.json', method => 'HEAD')->{headers}{'content-length'}, length $r->{body}, 'HEAD');

my $d = json($r->{body});
like($d->{openapi}, qr/^3\.1\./, 'OpenAPI 3.1');

# Each reference leads somewhere.

my (@lost, @todo);
@todo = ($d);
while (defined(my $v = shift @todo)) {
    if (ref $v eq 'HASH') {
        if (my $ref = $v->{'$ref'}) {
            my $at = $d;
            $at = ref $at eq 'HASH' ? $at->{$_} : undef for grep { $_ ne '#' } split m{/}, $ref;
            push @lost, $ref unless $at;
        }
        push @todo, grep { ref } values %$v;
    } elsif (ref $v eq 'ARRAY') {
        push @todo, grep { ref } @$v;
    }
}
is_deeply(\@lost, [], 'references');

# Paths and fields are those of the module's tables, both ways.

my $handler = $t->read_file("$t->{tree}/ngx_http_glm_module/ngx_http_glm_handler.c");
my (%code, %yaml);
$code{$1}++ while $handler =~ /ngx_string\("\w+"\), ngx_string\("(\S+?)"\)/g;
delete @code{qw(/metrics /status)};     # answered where they are named only
delete $code{"/v1$_"} for grep { $code{$_} } '/tokenize', '/detokenize', '/tokenizer_info';
$yaml{ s/\{model\}//r }++ for keys %{ $d->{paths} };
my $chat = $code{'/v1/chat/completions'};
delete @yaml{qw(/v1/chat/completions /tokenizer_info)} unless $chat;
is_deeply([ sort keys %yaml ], [ sort keys %code ], 'paths');

my $field = $t->read_file("$t->{tree}/ngx_http_glm_module/ngx_http_glm_field.c");
my %fields;
while ($field =~ /^    \{ "(\w+)", \s*([A-Z|]+),/mg) {
    my ($name, $apis) = ($1, $2);
    $apis =~ s/G/C|I/;
    $apis =~ s/C/L|H/ if $chat;
    $fields{$_}{$name}++ for split /\|/, $apis =~ tr/C/L/r;
}
my $s = $d->{components}{schemas};
sub names {
    my ($schema) = @_;
    my %n = map { $_ => 1 } map { keys %{ $_->{properties} // {} } } $schema,
        map { $_->{'$ref'} ? $s->{ (split m{/}, $_->{'$ref'})[-1] } : $_ } @{ $schema->{allOf} // [] };
    return [ sort keys %n ];
}
is_deeply(names($s->{CompletionRequest}), [ sort keys %{ $fields{L} } ], 'fields of a completion');
is_deeply(names($s->{DetokenizeRequest}), [ sort keys %{ $fields{D} } ], 'fields of /detokenize');
is_deeply(names($s->{InfillRequest}), [ sort keys %{ $fields{I} } ], 'fields of /v1/infill');
is_deeply(names($s->{EditorRequest}), [ sort keys %{ $fields{E} } ], 'fields of /infill');
is_deeply(names($s->{ScoreRequest}), [ sort keys %{ $fields{S} } ], 'fields of /v1/score');
SKIP: {
    skip 'chat is not in this build', 2 unless $chat;
    is_deeply(names($s->{ChatRequest}), [ sort keys %{ $fields{H} } ], 'fields of a chat');
    is_deeply(names($s->{TokenizeRequest}), [ sort keys %{ $fields{T} } ], 'fields of /tokenize');
}

$t->done;
