/*
 * preset: what the published GLM-130B checkpoint does not bring along: its
 * configuration, and where its tokenizer's ids lie.
 */
#ifndef GLM_CV_PRESET_H
#define GLM_CV_PRESET_H

/* Text of a config.json, or NULL when there is none of this name. */
const char *cv_preset_config(const char *name);
/* Text of a tokenizer_config.json for ice_text.model with 130,000 pieces. */
extern const char  cv_preset_tokenizer[];
#define CV_PRESET_VOCAB  150528         /* vocab_size that the text is for */

#endif
