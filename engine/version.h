/*
 * version: of the programs beside the module, one number for all.
 */
#ifndef GLM_VERSION_H
#define GLM_VERSION_H

#define GLM_VERSION  "0.1.0"

#endif
