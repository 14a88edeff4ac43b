// The acl owns policies: what they may say, and what they mean.
//
// Rules that always hold:
//
//  1. What no policy grants is denied; no rule takes away what another grants.
//  2. A path is that of a route with its names escaped, so that no name can
//     reach over a slash into another path.
//  3. To match a path takes time linear in the lengths of path and pattern.
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
	policyPathBytesMax = 1_500  // of one path: the longest job name, and what may stand around it
	policyStarsMax     = 8      // in one path; nobody can foresee what more would match
)

// What a route asks of its caller. The first five are what a policy can grant.
const (
	mayCreate = "create"
	mayRead   = "read"
	mayUpdate = "update"
	mayDelete = "delete"
	mayList   = "list"
)

// capabilities are what a policy can grant on a path.
var capabilities = []string{mayCreate, mayRead, mayUpdate, mayDelete, mayList}

// errBuiltIn is returned for a change of a policy that belfry brings itself.
const errBuiltIn = refusal("the policies admin, operator and viewer are built in and cannot be changed; choose another name")

// A policy says what its bearers may do. Its fields are named as in Dkron.
type policy struct {
	Name  string `json:"Name"`
	Rules string `json:"Rules"` // JSON of policyRules, kept as it was written
}

// policyRules grant capabilities on paths of the API, in which "*" matches
// within a segment and "**", at the end, any rest.
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
		if err := checkGlob(path); err != nil {
			return fmt.Errorf("Rules: the path %q %w", path, err)
		}
		for _, c := range rules.Path[path].Capabilities {
			if !slices.Contains(capabilities, c) {
				return fmt.Errorf("Rules: %q on %q is no capability, want one of %s", c, path, strings.Join(capabilities, ", "))
			}
		}
	}
	return nil
}

// checkGlob says what is wrong with a path of a policy. The characters that
// other languages of patterns give a meaning are refused: here they would mean
// themselves, and no path has them.
func checkGlob(path string) error {
	stars, rest := strings.TrimSuffix(path, "**"), strings.HasSuffix(path, "**")
	switch {
	case !strings.HasPrefix(path, "/"):
		return errors.New("must begin with a slash, as \"/v1/jobs/*\"")
	case len(path) > policyPathBytesMax:
		return fmt.Errorf("must not be longer than %d bytes", policyPathBytesMax)
	case strings.ContainsAny(path, "?[]{}\\") || strings.ContainsFunc(path, func(r rune) bool { return r <= ' ' || r > '~' }):
		return errors.New("must consist of letters, digits, slashes and stars; write other characters as in a URL")
	case strings.Contains(stars, "**") || rest && strings.HasSuffix(stars, "*"):
		return errors.New("may have ** at its end only")
	case strings.Count(path, "*") > policyStarsMax:
		return fmt.Errorf("must not have more than %d stars", policyStarsMax)
	}
	return nil
}

// parsedRules returns the rules of policies that validate has accepted. Rules
// that it does not accept, from an older version, grant nothing.
func parsedRules(policies []policy) []policyRules {
	list := make([]policyRules, 0, len(policies))
	for _, p := range policies {
		var rules policyRules
		if p.validate() == nil && json.Unmarshal([]byte(p.Rules), &rules) == nil {
			list = append(list, rules)
		}
	}
	return list
}

// allow reports whether one of the policies grants a capability on a path.
func allow(policies []policyRules, path, capability string) bool {
	for _, p := range policies {
		for glob, rule := range p.Path {
			if slices.Contains(rule.Capabilities, capability) && matchPath(glob, path) {
				return true
			}
		}
	}
	return false
}

// matchPath reports whether a path of a policy, as checkGlob accepts it, means
// a path.
func matchPath(glob, path string) bool {
	glob, rest := strings.CutSuffix(glob, "**")
	for {
		want, globs, more := strings.Cut(glob, "/")
		got, paths, longer := strings.Cut(path, "/")
		if rest && !more {
			// The last segment of the pattern is a beginning.
			return matchSegment(want+"*", got)
		}
		if !matchSegment(want, got) || more != longer {
			return false
		}
		if !more {
			return true
		}
		glob, path = globs, paths
	}
}

// matchSegment reports whether a pattern with stars is the whole of a text. The
// leftmost place is the right one for every piece but the last: it leaves most
// to those that follow, so nothing is ever tried again.
func matchSegment(glob, text string) bool {
	pieces := strings.Split(glob, "*")
	if len(pieces) == 1 {
		return glob == text
	}
	first, last := pieces[0], pieces[len(pieces)-1]
	text, ok := strings.CutPrefix(text, first)
	if !ok {
		return false
	}
	for _, piece := range pieces[1 : len(pieces)-1] {
		at := strings.Index(text, piece)
		if at < 0 {
			return false
		}
		text = text[at+len(piece):]
	}
	return strings.HasSuffix(text, last)
}

// viewerPaths are what anybody who watches may see: no backup, which holds
// everything, and nothing of access control.
const viewerPaths = `
	"/v1":               {"capabilities": ["read"]},
	"/v1/jobs":          {"capabilities": ["list"]},
	"/v1/jobs/**":       {"capabilities": ["read", "list"]},
	"/v1/busy":          {"capabilities": ["list"]},
	"/v1/pause":         {"capabilities": ["read"]},
	"/v1/stats":         {"capabilities": ["read"]},
	"/v1/schedule":      {"capabilities": ["read"]},
	"/v1/members":       {"capabilities": ["list"]},
	"/v1/leader":        {"capabilities": ["read"]},
	"/v1/isleader":      {"capabilities": ["read"]},
	"/v1/raft/peers":    {"capabilities": ["list"]},
	"/v1/openapi.yaml":  {"capabilities": ["read"]},
	"/health":           {"capabilities": ["read"]},
	"/metrics":          {"capabilities": ["read"]}`

// builtIn are the policies that are always there, by name. An operator runs
// jobs, toggles them and ends runs, but says not what they do.
var builtIn = []policy{
	{"admin", `{"path": {"/**": {"capabilities": ["create", "read", "update", "delete", "list"]}}}`},
	{"operator", `{"path": {` + viewerPaths + `,
	"/v1/jobs/*":                    {"capabilities": ["create"]},
	"/v1/jobs/*/toggle":             {"capabilities": ["create"]},
	"/v1/jobs/*/executions/*/kill":  {"capabilities": ["create"]}
}}`},
	{"viewer", `{"path": {` + viewerPaths + `
}}`},
}

// builtInPolicy returns the policy of that name that is always there.
func builtInPolicy(name string) (policy, bool) {
	i := slices.IndexFunc(builtIn, func(p policy) bool { return p.Name == name })
	if i < 0 {
		return policy{}, false
	}
	return builtIn[i], true
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
