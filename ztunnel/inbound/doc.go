// Package inbound owns what enters a captured pod: the HBONE front on port
// 15008 and the plaintext front. It decides by policy before the application
// is dialled, and dials it with the client's address.
package inbound
