/*
 * preset: the texts.
 */
#include <stddef.h>
#include <string.h>

#include "preset.h"

static const char  cv_glm_130b[] =
    "{\n"
    " \"name\": \"glm-130b\",\n"
    " \"num_layers\": 70,\n"
    " \"hidden_size\": 12288,\n"
    " \"inner_hidden_size\": 32768,\n"
    " \"num_attention_heads\": 96,\n"
    " \"vocab_size\": 150528,\n"
    " \"max_sequence_length\": 2048,\n"
    " \"layernorm_order\": \"post\",\n"
    " \"layernorm_epsilon\": 1e-05,\n"
    " \"position_encoding_2d\": false,\n"
    " \"no_glu\": false,\n"
    " \"tokenizer_type\": \"icetk-glm-130B\",\n"
    " \"special_tokens\": {\"[MASK]\": 150000, \"[gMASK]\": 150001, \"[sMASK]\": 150002,\n"
    "  \"eod\": 150003, \"sop\": 150004, \"eop\": 150005, \"ENC\": 150006, \"dBLOCK\": 150007,\n"
    "  \"eos\": 20002},\n"
    " \"end_tokens\": [150005, 20002]\n"
    "}\n";

const char  cv_preset_tokenizer[] =
    "{\n"
    " \"type\": \"icetk\",\n"
    " \"model_file\": \"ice_text.model\",\n"
    " \"image_tokens\": 20000,\n"
    " \"num_text_tokens\": 130000,\n"
    " \"max_blank_length\": 80,\n"
    " \"byte_fallback\": true,\n"
    " \"newline_piece\": \"<n>\",\n"
    " \"unk_id\": 20000,\n"
    " \"bos_id\": 20001,\n"
    " \"eos_id\": 20002,\n"
    " \"pad_id\": 20003,\n"
    " \"special_tokens\": {\"[MASK]\": 150000, \"[gMASK]\": 150001, \"[sMASK]\": 150002,\n"
    "  \"eod\": 150003, \"sop\": 150004, \"eop\": 150005, \"ENC\": 150006, \"dBLOCK\": 150007,\n"
    "  \"eos\": 20002},\n"
    " \"tab_token\": {\"piece\": \"<|tab|>\", \"id\": 150008},\n"
    " \"blank_tokens\": {\"piece\": \"<|blank_N|>\", \"first_length\": 2, \"first_id\": 150009,\n"
    "  \"last_length\": 80, \"last_id\": 150087},\n"
    " \"byte_tokens\": {\"piece\": \"<0xNN>\", \"first_id\": 150088, \"last_id\": 150343},\n"
    " \"vocab_size\": 150344,\n"
    " \"padded_vocab_size\": 150528\n"
    "}\n";


const char *
cv_preset_config(const char *name)
{
    return strcmp(name, "glm-130b") == 0 ? cv_glm_130b : NULL;
}
