package main

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// The files testdata/acl/*.policy read like policy. A line is one of
//
//	path GLOB CAPABILITY…          a rule of the policy that follows
//	builtin NAME                   the policy is the built-in one instead
//	allow CAPABILITY[,…] PATH…     each of these is granted on each path
//	deny CAPABILITY[,…] PATH…      none is
//	policy                         the next one begins
//
// "any" is every capability; # begins a comment.
func TestAllow(t *testing.T) {
	text, err := os.ReadFile("testdata/acl/allow.policy")
	if err != nil {
		t.Fatal(err)
	}
	var rules []string
	var named []policy
	for n, line := range strings.Split(string(text), "\n") {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		switch words[0] {
		case "policy":
			rules, named = nil, nil
		case "builtin":
			p, ok := builtInPolicy(words[1])
			if !ok {
				t.Fatalf("line %d: no built-in policy %q", n+1, words[1])
			}
			named = append(named, p)
		case "path":
			rules = append(rules, `"`+words[1]+`": {"capabilities": ["`+strings.Join(words[2:], `", "`)+`"]}`)
		case "allow", "deny":
			written := policy{"written", `{"path": {` + strings.Join(rules, ", ") + `}}`}
			parsed := parsedRules(append(slices.Clone(named), written))
			if len(parsed) != len(named)+1 {
				t.Fatalf("line %d: a policy above it is invalid", n+1)
			}
			asked := strings.Split(words[1], ",")
			if words[1] == "any" {
				asked = capabilities
			}
			for _, c := range asked {
				for _, path := range words[2:] {
					if got, want := allow(parsed, path, c), words[0] == "allow"; got != want {
						t.Errorf("line %d: allow(%s, %s) = %t, want %t", n+1, path, c, got, want)
					}
				}
			}
		default:
			t.Fatalf("line %d: %q is no word of this file", n+1, words[0])
		}
	}
}

// TestBuiltIn: the policies that are always there keep their own rules.
func TestBuiltIn(t *testing.T) {
	for _, p := range builtIn {
		if err := p.validate(); err != nil {
			t.Errorf("%s: %v", p.Name, err)
		}
	}
}

func TestCheckGlob(t *testing.T) {
	for _, c := range []struct {
		path string
		ok   bool
	}{
		{"/v1/jobs", true},
		{"/v1/jobs/team-a-*", true},
		{"/v1/jobs/team-a-**", true},
		{"/**", true},
		{"/v1/*/a*b*c", true},
		{"/v1/acl/policies/a%2Fb", true},
		{"", false},
		{"v1/jobs", false},
		{"/v1/**/jobs", false},
		{"/v1/jobs/***", false},
		{"/v1/jobs/[a-z]", false},
		{"/v1/jobs/a?", false},
		{"/v1/jobs/{a,b}", false},
		{"/v1/jobs/a b", false},
		{"/v1/jobs/\x00", false},
		{"/v1/jobs/ä", false},
		{"/" + strings.Repeat("a*", policyStarsMax+1), false},
		{"/" + strings.Repeat("a", policyPathBytesMax), false},
	} {
		if err := checkGlob(c.path); (err == nil) != c.ok {
			t.Errorf("checkGlob(%q) = %v, want ok %t", c.path, err, c.ok)
		}
	}
}

// FuzzMatchPath compares with the rule written down the slow way: every split
// of the path is tried.
func FuzzMatchPath(f *testing.F) {
	f.Add("/v1/jobs/*", "/v1/jobs/a")
	f.Add("/v1/jobs/a-**", "/v1/jobs/a-b/executions")
	f.Add("/a*b*c", "/aXbYc")
	f.Add("/**", "/")
	f.Fuzz(func(t *testing.T, glob, path string) {
		if checkGlob(glob) != nil || len(path) > 60 {
			return
		}
		if got, want := matchPath(glob, path), slowMatch(glob, path, map[[2]int]bool{}); got != want {
			t.Errorf("matchPath(%q, %q) = %t, want %t", glob, path, got, want)
		}
	})
}

func slowMatch(glob, path string, failed map[[2]int]bool) bool {
	at := [2]int{len(glob), len(path)}
	switch {
	case failed[at]:
		return false
	case glob == "**":
		return true
	case glob == "":
		return path == ""
	}
	if glob[0] == '*' {
		for n := range len(path) + 1 {
			if slowMatch(glob[1:], path[n:], failed) {
				return true
			}
			if n < len(path) && path[n] == '/' {
				break
			}
		}
		failed[at] = true
		return false
	}
	ok := path != "" && glob[0] == path[0] && slowMatch(glob[1:], path[1:], failed)
	failed[at] = failed[at] || !ok
	return ok
}
