// The acl owns policies: what they may say, and what they mean. They are kept
// and served; nothing is refused because of one yet.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
)

const (
	policyNameBytesMax = 255
	policyBytesMax     = 64_000 // of its JSON, rules included
)

// capabilities are what a policy can grant on a path.
var capabilities = []string{"create", "read", "update", "delete", "list"}

// A policy says what its bearers may do. Its fields are named as in Dkron.
type policy struct {
	Name  string `json:"Name"`
	Rules string `json:"Rules"` // JSON of policyRules, kept as it was written
}

// policyRules grant capabilities on paths of the API, in which "*" matches
// within a segment and "**" any rest.
type policyRules struct {
	Path map[string]struct {
		Capabilities []string `json:"capabilities"`
	} `json:"path"`
}

// decodePolicy reads the policy called name as clients send it. What it does
// not know it refuses: a rule that is overlooked would grant less, or more,
// than its author meant. No body, which upstream's document does not have, is a
// policy that grants nothing. The error is one sentence that names the field.
func decodePolicy(name string, doc []byte) (policy, error) {
	if len(doc) == 0 {
		doc = []byte(`{"Rules": "{}"}`)
	}
	var p policy
	if err := decodeStrict(doc, &p); err != nil {
		return policy{}, fmt.Errorf("the body is no policy: %w", err)
	}
	if p.Name != "" && p.Name != name {
		return policy{}, fmt.Errorf("Name: %q is not the %q of the path", p.Name, name)
	}
	p.Name = name
	return p, p.validate()
}

func (p policy) validate() error {
	if p.Name == "" || len(p.Name) > policyNameBytesMax || strings.ContainsFunc(p.Name, unicode.IsControl) {
		return fmt.Errorf("Name: must have 1 to %d bytes and no control characters", policyNameBytesMax)
	}
	var rules policyRules
	if err := decodeStrict([]byte(p.Rules), &rules); err != nil {
		return fmt.Errorf("Rules: must be the text of a JSON object such as {\"path\": {\"/v1/jobs/*\": {\"capabilities\": [\"read\"]}}}: %w", err)
	}
	for _, path := range sortedKeys(rules.Path) {
		for _, c := range rules.Path[path].Capabilities {
			if !slices.Contains(capabilities, c) {
				return fmt.Errorf("Rules: %q on %q is no capability, want one of %s", c, path, strings.Join(capabilities, ", "))
			}
		}
	}
	return nil
}

// decodeStrict reads one JSON value with no unknown fields and nothing behind it.
func decodeStrict(doc []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(doc))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("something follows the JSON value")
	}
	return nil
}
