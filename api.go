// Api owns what clients see: the route table, JSON in and out, list parameters, and the status of each error. It
// decides nothing about jobs.
//
// It follows Dkron's API document and, where that is silent, Dkron's observed behaviour. "Differs:" marks deliberate
// exceptions, "Ours" what Dkron does not have.
package main

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	linked "container/list"
	"context"
	crand "crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"maps"
	"math"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/sync/singleflight"
)

const version = "0.1.0"

const (
	keyBytesMax     = 255                    // of an Idempotency-Key
	upcomingMax     = 100                    // ticks that /v1/schedule computes
	auditPageMax    = 1_000                  // rows in one response
	recentOutputMax = 4_000                  // bytes of each output in a list over all jobs
	printedPatience = 300 * time.Millisecond // for a node to return the output of its running executions, in a list
	failingMax      = 100                    // jobs in a list of failures
	lanesMax        = 50                     // jobs in a timeline
	partsMax        = 120                    // of each hour of a timeline
	metadataMax     = 16                     // metadata keys that a list of jobs is filtered by

	whyBytesMax = 1_000                  // of a hold
	waitMax     = time.Minute            // that a client may wait for an end
	lookPause   = 100 * time.Millisecond // between looks for it

	outcomeJobsMax = 100 // jobs in one request for outcomes
	outcomesShown  = 10  // executions of each job

	pollTime   = time.Second // between polls for what is not in the log: leader and members
	admitPolls = 2           // polls between checks of the token
	alivePolls = 15          // polls between events that show that the connection is alive
	eventsMax  = 200         // sent at once unless the client wants fewer; more become one eventReload

	statsDays    = 30  // days in the response to /v1/stats by default
	statsDaysMax = 365 // and at most

	restoreJobsMax  = 200_000
	restoreBytesMax = 256 << 20
	progressBytes   = 64 << 10 // of an upload that must arrive within readTimeout

	longResponse         = 1 << 20 // bytes; longer responses are streamed
	longResponsesMax     = 16      // streamed at once
	longResponsesOfToken = 4       // streamed at once to one token

	retryAfter    = "1"              // seconds, in a response with status 503
	readTimeout   = 30 * time.Second // of a request
	idleTimeout   = 2 * time.Minute  // of a kept-alive connection
	headerTimeout = 10 * time.Second // of a request's header: generous for slow clients
	headBytesMax  = 64 << 10         // of a request's header; many short lines take twenty times as much memory
)

//go:embed web
var web embed.FS

// api serves HTTP. All fields but those of the last group are fixed once it serves.
type api struct {
	node        string
	hosts       []string   // accepted in Host, besides localhost and IP addresses
	origins     []string   // of other pages that may use the API
	store       *store     // nil on an agent
	scheduler   *scheduler // nil on an agent
	plane       *plane
	quit        context.CancelFunc // stops this node
	metricsJobs int                // that have metrics of their own
	acl         bool               // requests need a token
	dir         string             // the data directory, which holds the bootstrap secret
	log         *slog.Logger

	stopping   <-chan struct{} // closed when the node stops; nil: never
	copying    atomic.Bool     // a backup is in progress
	long       longResponses
	refusals   refusals
	catchingUp singleflight.Group // shares the call of caughtUp
	uploads    uploads
}

const (
	leaveRoute     = "POST /v1/leave" // the only write that concerns the node itself, not the cluster
	bootstrapRoute = "POST /v1/acl/bootstrap"
	healthRoute    = "GET /health"
	isLeaderRoute  = "GET /v1/isleader"
	restoreRoute   = "POST /v1/restore"
	drainRoute     = "POST /v1/members/{name}/drain"
	calendarRoute  = "PUT /v1/calendars/{name}"
	runRoute       = "POST /v1/jobs/{job}/run" // the same as POST /v1/jobs/{job}
	watchRoute     = "GET /v1/events"
	outputRoute    = "GET /v1/jobs/{job}/executions/{execution}/output"
)

// A route is an operation of the API.
type route struct {
	pattern    string // as http.ServeMux has it
	capability string // that the caller needs on the path, or one of the four special values in acl.go
	handle     handler
	params     string // that it reads in the query, besides pretty
}

// A handler serves the requests of a route.
type handler func(*apiCall) (*response, error)

// An apiCall is a request with what its handler needs to know about it.
type apiCall struct {
	*http.Request
	control *http.ResponseController
	caller  *caller
	query   params
	req     request // of a write; so is doc
	doc     []byte  // the body, but that of restoreRoute
}

// routes is the API. GET of one object needs mayRead, GET of a collection mayList. As in Dkron, POST needs mayCreate,
// and PUT and PATCH need mayUpdate.
func (a *api) routes() []route {
	return []route{
		{"GET /v1/{$}", mayRead, a.status, ""},
		{"GET /v1", mayRead, a.status, ""},
		{"GET /v1/jobs", mayListJobs, a.listJobs,
			"metadata[] _sort _order q status disabled executor owner _start _end"},
		{"POST /v1/jobs", mayStoreJob, a.putJob, "runoncreate"},
		{"PATCH /v1/jobs", mayStoreJob, a.putJob, "runoncreate"},
		{"GET /v1/jobs/{job}", mayRead, a.showJob, ""},
		{"PUT /v1/jobs/{job}", mayStoreJob, a.putJob, "runoncreate"},
		{"POST /v1/jobs/{job}", mayCreate, a.runJob, "wait force"},
		{runRoute, mayCreate, a.runJob, "wait force"},
		{"DELETE /v1/jobs/{job}", mayDelete, a.writeJob(a.scheduler.delete), ""},
		{"POST /v1/jobs/{job}/toggle", mayCreate, a.toggleJob, "disabled"},
		{restoreRoute, mayCreate, a.restore, "dry-run prune metadata[]"},
		{"GET /v1/jobs/{job}/executions", mayList, a.listExecutions, "_sort _order _start _end output_size_limit"},
		{"DELETE /v1/jobs/{job}/executions", mayDelete, a.writeJob(a.scheduler.deleteExecutions), ""},
		{"GET /v1/jobs/{job}/executions/{execution}", mayRead, a.showExecution, ""},
		{outputRoute, mayRead, a.showOutput, "follow"},
		{"POST /v1/jobs/{job}/executions/{execution}/kill", mayCreate, a.killExecution, ""},
		{"GET /v1/jobs/{job}/ticks", mayList, a.listTicks, "start end _start _end"},
		{"GET /v1/jobs/{job}/targets", mayRead, a.targets, ""},

		{"GET /v1/busy", mayList, a.busy, "waiting limit output_size_limit"},
		{"GET /v1/pause", mayRead, a.showPause, ""},
		{"POST /v1/pause", mayCreate, a.setPaused(true), ""},
		{"POST /v1/unpause", mayCreate, a.setPaused(false), ""},
		{"GET /v1/hold", mayRead, a.showHolds, ""},
		{"POST /v1/hold", mayCreate, a.setRule(actionHold, ruleHold, true), ""},
		{"POST /v1/release", mayCreate, a.setRule(actionRelease, ruleHold, false), ""},
		{"POST /v1/enable", mayCreate, a.toggleAll(false), "metadata[]"},
		{"POST /v1/disable", mayCreate, a.toggleAll(true), "metadata[]"},
		{"GET /v1/calendars", mayList, a.listCalendars, ""},
		{"GET /v1/calendars/{name}", mayRead, a.showCalendar, ""},
		{calendarRoute, mayUpdate, a.setRule(actionPutCalendar, ruleCalendar, true), ""},
		{"DELETE /v1/calendars/{name}", mayDelete, a.setRule(actionDeleteCalendar, ruleCalendar, false), ""},
		{"GET /v1/stats", mayRead, a.stats, "days"},
		{"GET /v1/schedule", mayRead, a.nextTicks, "schedule timezone name from count"},
		{"GET /v1/summary", mayRead, a.summary, ""},
		{"GET /v1/executions", mayList, a.recentExecutions, "start end outcome job node owner limit output_size_limit"},
		{"GET /v1/executions/{execution}", anyToken, a.findExecution, ""},
		{"GET /v1/outcomes", mayListJobs, a.outcomes, "job"},
		{"GET /v1/failures", mayList, a.failures, "start end limit output_size_limit"},
		{"GET /v1/timeline", mayList, a.timeline, "parts limit"},
		{"GET /v1/upcoming", mayList, a.upcoming, "start end limit"},
		{watchRoute, mayListJobs, a.watch, "limit"},

		{"GET /v1/members", mayList, a.listMembers, ""},
		{drainRoute, mayCreate, a.setRule(actionDrain, ruleDrain, true), "wait"},
		{"POST /v1/members/{name}/undrain", mayCreate, a.setRule(actionUndrain, ruleDrain, false), ""},
		{"GET /v1/leader", mayRead, a.showLeader, ""},
		{isLeaderRoute, mayRead, a.isLeader, ""},
		{leaveRoute, mayCreate, a.leaveCluster, "node drain"},
		{"GET /v1/backup", mayRead, a.backup, ""},
		{"GET /v1/raft/peers", mayList, a.listPeers, ""},
		{"DELETE /v1/raft/peers/{id}", mayDelete, a.dropPeer, ""},
		{healthRoute, noToken, a.showHealth, "live leader verbose"},
		{"GET /metrics", mayRead, a.metrics, ""},
		{"GET /debug/vars", mayRead, a.debugVars, ""},
		{"GET /v1/openapi.yaml", mayRead, a.openapi, ""},
		{"GET /v1/audit", mayList, a.listAudit, "job actor action start end _start _end"},
		{"GET /v1/acl/policies", mayList, a.listPolicies, ""},
		{"GET /v1/acl/policies/{name}", mayRead, a.showPolicy, ""},
		{"POST /v1/acl/policies/{name}", mayCreate, a.putPolicy, ""},
		{"DELETE /v1/acl/policies/{name}", mayDelete, a.deletePolicy, ""},
		{"GET /v1/acl/tokens", mayList, a.withACL(a.listTokens), ""},
		{"POST /v1/acl/tokens", mayCreate, a.withACL(a.createToken), ""},
		{"GET /v1/acl/tokens/{accessor}", mayRead, a.withACL(a.showToken), ""},
		{"DELETE /v1/acl/tokens/{accessor}", mayDelete, a.withACL(a.deleteToken), ""},
		{bootstrapRoute, noToken, a.withACL(a.bootstrap), ""},
		{"GET /v1/acl/self", anyToken, a.withACL(a.self), "path capability"},
	}
}

// paths returns the paths of the routes, as policies name them.
func (a *api) paths() []string {
	var list []string
	for _, route := range a.routes() {
		_, path, _ := strings.Cut(route.pattern, " ")
		list = append(list, strings.TrimSuffix(path, "/{$}"))
	}
	return list
}

// handler serves the API and the page.
func (a *api) handler() http.Handler {
	mux := http.NewServeMux()
	for _, route := range a.routes() {
		handler := a.handlerFor(route)
		if route.writes() {
			handler = a.atLeader(handler)
		}
		mux.Handle(route.pattern, a.limited(route.bodyMax(), a.checked(route, handler)))
	}
	servePage(mux)
	return a.guard(trimSlash(mux))
}

func (r route) writes() bool { return !strings.HasPrefix(r.pattern, "GET ") }

// withPrefix serves next below prefix; "" is the root. Nodes send each other requests without the prefix, so each may
// have its own.
func withPrefix(prefix string, next http.Handler) http.Handler {
	if prefix == "" {
		return next
	}
	below := http.StripPrefix(prefix, next)
	mux := http.NewServeMux() // redirects the prefix itself to prefix/
	mux.HandleFunc(prefix+"/", func(w http.ResponseWriter, r *http.Request) {
		out := streamTo(w)
		out.prefix = prefix
		below.ServeHTTP(out, r)
	})
	return mux
}

// guard protects everything else against browsers on other sites. A forwarded request was checked by the node that
// received it from its client.
func (a *api) guard(next http.Handler) http.Handler {
	var own http.CrossOriginProtection
	for _, origin := range a.origins {
		_ = own.AddTrustedOrigin(origin) // validated with the flag; on an error the origin stays untrusted
	}
	own.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.countRefusal(r, refusedOrigin)
		const text = "this request comes from a page of another origin; --cors-origin allows one"
		http.Error(w, text, http.StatusForbidden)
	}))
	fromClient := a.checkHost(a.cors(own.Handler(next)))
	forwarded := a.checkHost(next)
	return http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		w := streamTo(out)
		if _, ok := forwardedFrom(r.Context()); ok {
			forwarded.ServeHTTP(w, r)
		} else {
			fromClient.ServeHTTP(w, r)
		}
		w.extend() // net/http flushes the rest after the handler
	})
}

// cors lets pages of the origins in --cors-origin use the API. It allows no credentials, because the API uses no
// cookies. Responses to other origins have no CORS headers.
func (a *api) cors(next http.Handler) http.Handler {
	if len(a.origins) == 0 {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Add("Vary", "Origin")
		origin := r.Header.Get("Origin")
		if !slices.Contains(a.origins, origin) {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Access-Control-Allow-Origin", origin)
		if r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != "" {
			w.Header().Set("Access-Control-Allow-Methods", "GET, POST, PUT, PATCH, DELETE")
			w.Header().Set("Access-Control-Allow-Headers", "Authorization, X-Dkron-Token, Content-Type, "+
				"Idempotency-Key, Belfry-Rev")
			w.Header().Set("Access-Control-Max-Age", "600")
			w.WriteHeader(http.StatusNoContent)
			return
		}
		const exposed = "X-Total-Count, X-Whom, Location, Belfry-Group, Belfry-Not-Run, Belfry-Older, Belfry-More, " +
			"Belfry-Rev, Belfry-Warning"
		w.Header().Set("Access-Control-Expose-Headers", exposed)
		next.ServeHTTP(w, r)
	})
}

// pageTypes are the content types of the page's files in web/, by extension. Of the others only the scripts are served,
// joined into one.
var pageTypes = map[string]string{
	".html": "text/html; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".svg":  "image/svg+xml",
}

// These match the comments, imports and exports in the page's modules, in the only forms that pageScript knows.
var (
	moduleComment = regexp.MustCompile(`(?m)^ *// .*\n`)
	moduleImport  = regexp.MustCompile(`(?m)^import (?:\* as (\w+)|(\{.*\})) from "\./(\w+)\.js";$`)
	moduleExport  = regexp.MustCompile(`(?m)^export ((?:async )?(?:function|class|const) (\w+))`)
)

// pageScript joins a module of the page and those that it imports into one script, each before the first that imports
// it: a function that returns what it exports. One file compresses by a fifth better than one per module, and takes one
// round trip rather than one per level of imports.
func pageScript(name string, done map[string]bool) (script []byte) {
	if done[name] {
		return nil
	}
	done[name] = true
	doc, _ := fs.ReadFile(web, "web/"+name+".js") // embedded: cannot fail
	doc = moduleComment.ReplaceAll(doc, nil)
	doc = moduleImport.ReplaceAllFunc(doc, func(line []byte) []byte {
		m := moduleImport.FindSubmatch(line)
		script = append(script, pageScript(string(m[3]), done)...)
		names := bytes.ReplaceAll(slices.Concat(m[1], m[2]), []byte(" as "), []byte(": "))
		return fmt.Appendf(nil, "const %s = m_%s;", names, m[3])
	})
	var exports [][]byte
	for _, m := range moduleExport.FindAllSubmatch(doc, -1) {
		exports = append(exports, m[2])
	}
	doc = moduleExport.ReplaceAll(doc, []byte("$1"))
	const module = "const m_%s = (() => {\n%sreturn { %s };\n})();\n"
	return fmt.Appendf(script, module, name, doc, bytes.Join(exports, []byte(", ")))
}

// pageComments are what only readers of the source need: lines of comments, and indentation.
var pageComments = regexp.MustCompile(`(?m)^[ \t]*(//.*\n|/\*[^*]*\*/\n)?`)

// pageFiles are the files of the page by name, compressed once for all servers of a process.
var pageFiles = sync.OnceValue(func() map[string]http.Handler {
	list, _ := fs.ReadDir(web, "web") // embedded: cannot fail
	files := map[string]http.Handler{}
	for _, f := range list {
		if contentType, ok := pageTypes[path.Ext(f.Name())]; ok {
			doc, _ := fs.ReadFile(web, "web/"+f.Name())
			doc = pageComments.ReplaceAll(doc, nil)
			files[f.Name()] = pageFile(doc, contentType)
		}
	}
	files["app.js"] = pageFile(pageScript("app", map[string]bool{}), "text/javascript; charset=utf-8")
	return files
})

// servePage adds the page, and redirects from the paths of Dkron's. The redirects are relative, so they work below a
// path prefix.
func servePage(mux *http.ServeMux) {
	for name, file := range pageFiles() {
		mux.Handle("GET /"+name, file)
	}
	mux.Handle("GET /{$}", pageFiles()["index.html"])
	for from, to := range map[string]string{"/dashboard": "./", "/ui": "./", "/ui/{$}": "../"} {
		mux.HandleFunc("GET "+from, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", to) // http.Redirect would make it absolute
			w.WriteHeader(http.StatusFound)
		})
	}
}

// pageFile serves a file of the page, compressed if the client accepts gzip. Browsers must revalidate it each time, so
// none mixes files of two versions.
func pageFile(doc []byte, contentType string) http.Handler {
	var small bytes.Buffer
	z := gzip.NewWriter(&small)
	z.Write(doc) // to a buffer: cannot fail
	z.Close()
	tag := fmt.Sprintf("%x", sha256.Sum256(doc))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Type", contentType)
		h.Set("Content-Security-Policy", "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors "+
			"'none'")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-cache")
		h.Set("Vary", "Accept-Encoding")
		h.Set("ETag", `"`+tag+`"`)
		body := doc
		if acceptsGzip.MatchString(r.Header.Get("Accept-Encoding")) {
			h.Set("ETag", `"`+tag+`-gzip"`)
			h.Set("Content-Encoding", "gzip")
			body = small.Bytes()
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
	})
}

// acceptsGzip matches an Accept-Encoding that lists gzip with a weight other than 0, which would mean never.
var acceptsGzip = regexp.MustCompile(`(?i)(?:^|,) *gzip *(?:$|,|; *q *= *(?:1|0?\.0*[1-9]))`)

// trimSlash redirects a path with trailing slashes to the route without them, if there is one, as upstream does:
// permanently for GET, and otherwise with 307, so that the client sends its body again.
func trimSlash(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		trimmed := strings.TrimRight(r.URL.Path, "/")
		// A path that is not clean might lead elsewhere: browsers take "//name/" for a host.
		if trimmed != r.URL.Path && path.Clean(trimmed) == trimmed {
			there, status := r.Clone(r.Context()), http.StatusTemporaryRedirect
			there.URL.Path, there.URL.RawPath = trimmed, ""
			if r.Method == http.MethodGet || r.Method == http.MethodHead {
				status = http.StatusMovedPermanently
			}
			_, own := mux.Handler(r)
			if _, other := mux.Handler(there); own == "" && other != "" {
				http.Redirect(w, r, there.URL.RequestURI(), status)
				return
			}
		}
		mux.ServeHTTP(w, r)
	})
}

// checkHost refuses requests whose Host is not a name of this server. A malicious page can point its own domain at our
// address (DNS rebinding) and would then be of our origin; it cannot do that with an IP address or somebody else's
// domain. A missing Host is allowed: no browser omits it, but health checks with HTTP/1.0 do. /health accepts any Host,
// but gives details only to an accepted one.
func (a *api) checkHost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cross-Origin-Resource-Policy", "same-origin") // no other page loads it as a script or image
		w.Header().Set("Cache-Control", "no-store")                   // no cache shows one token's response to another
		if a.ownHost(r.Host) {
			w.Header().Set("X-Whom", a.node)
		} else if r.URL.Path != "/health" {
			a.countRefusal(r, refusedHost)
			const text = "this server is not called %q; use its IP address or localhost, or add the name with " +
				"--allowed-host"
			http.Error(w, fmt.Sprintf(text, r.Host), http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (a *api) ownHost(host string) bool {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = host
	}
	name = strings.TrimSuffix(strings.ToLower(name), ".")
	return host == "" || net.ParseIP(strings.Trim(name, "[]")) != nil ||
		name == "localhost" || strings.HasSuffix(name, ".localhost") ||
		slices.ContainsFunc(a.hosts, func(h string) bool { return strings.EqualFold(name, h) })
}

// errUnauthenticated does not say what is wrong with a token: that would help an attacker who guesses.
var errUnauthenticated = problem{http.StatusUnauthorized, "this needs a valid token, in the header X-Dkron-Token " +
	"or Authorization: Bearer; \"belfry acl token create\" makes one"}

type callerKey struct{}

// callerOf returns the caller of a request. Without access control every caller may do everything.
func (a *api) callerOf(r *http.Request) *caller {
	if c, ok := r.Context().Value(callerKey{}).(*caller); ok {
		return c
	}
	return &caller{all: !a.acl}
}

// checked admits only callers with the rights that the route requires, before the body is read. It runs before a write
// is forwarded, and the leader checks again, because it does not rely on other nodes to have access control on. Rights
// that depend on the body are for the handler, which runs on the leader.
func (a *api) checked(route route, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a.acl {
			c, err := a.admit(route, r)
			if err != nil {
				a.fail(w, r, err)
				return
			}
			r = r.WithContext(context.WithValue(r.Context(), callerKey{}, c))
		}
		if !a.acl || route.pattern != healthRoute { // /health needs no token, so it must not protect a connection
			connAdmitted(r)
		}
		next.ServeHTTP(w, r)
	})
}

// admit returns the caller of a request, or an error if the route's rights are not granted to it.
func (a *api) admit(route route, r *http.Request) (*caller, error) {
	c, err := a.authenticate(r)
	if err == nil {
		err = a.checkRights(route, c, r)
	}
	return c, err
}

// sentSecret returns the secret in a request's headers, "" if there is none.
func sentSecret(r *http.Request) string {
	bearer := r.Header.Get("Authorization")
	if scheme, secret, ok := strings.Cut(bearer, " "); ok && strings.EqualFold(scheme, "Bearer") {
		bearer = secret
	}
	return cmp.Or(r.Header.Get("X-Dkron-Token"), bearer)
}

// countRefusal counts a refused request. It logs each address at most once a minute, so probing cannot fill the disk.
func (a *api) countRefusal(r *http.Request, reason string) {
	if addr := clientAddr(r); a.refusals.add(reason, addr, time.Now()) {
		a.log.Warn("a request was refused; more from this address within a minute are only counted in /metrics",
			"address", addr, "reason", reason, "method", r.Method, "path", r.URL.Path)
	}
}

// authenticate returns the caller of a request: the zero caller if it has no token, errUnauthenticated if it has an
// invalid one.
func (a *api) authenticate(r *http.Request) (*caller, error) {
	secret := sentSecret(r)
	if secret == "" {
		return &caller{}, nil
	}
	hash, ok := hashSecret(secret)
	if !ok {
		return nil, errUnauthenticated
	}
	t, err := a.store.clients.tokenByHash(hash[:])
	if from, _ := forwardedFrom(r.Context()); errors.Is(err, errNoToken) && !from.Final && !a.plane.leading() {
		a.caughtUp()
		t, err = a.store.clients.tokenByHash(hash[:])
	}
	if errors.Is(err, errNoToken) || err == nil && !t.valid(time.Now().UnixNano()) {
		err = errUnauthenticated
	}
	if err != nil {
		return nil, err
	}
	return a.newCaller(t)
}

// caughtUp waits until this server has applied what the leader has applied now: a token that is unknown here may have
// just been created. All waiting requests share one call of the leader, so bad tokens cause no more than one at a time.
// Without a leader it returns at once.
func (a *api) caughtUp() {
	call := func() (any, error) { return nil, a.plane.catchUp(context.Background()) } // shared, so not the client's
	// A shared call may have been made before the token was created.
	if _, err, shared := a.catchingUp.Do("", call); shared && err == nil {
		a.catchingUp.Do("", call)
	}
}

// newCaller returns the caller with token t. A deleted policy grants nothing.
func (a *api) newCaller(t token) (*caller, error) {
	var policies []policy
	for _, name := range t.Policies {
		p, err := a.store.clients.policy(name)
		switch {
		case err == nil:
			policies = append(policies, p)
		case !errors.Is(err, errNoPolicy):
			return nil, err
		}
	}
	return &caller{t, t.Type == tokenManagement, parsedRules(policies)}, nil
}

// checkRights returns an error unless the caller has the rights that the route requires, whatever the body is.
func (a *api) checkRights(route route, c *caller, r *http.Request) error {
	path, granted := resource(route.pattern, r), true
	wanted := route.capability
	switch {
	case route.pattern == bootstrapRoute:
		return a.checkBootstrap(c, r)
	case wanted == noToken:
	case c.token.Accessor == "":
		return errUnauthenticated
	case wanted == anyToken:
	case wanted == mayListJobs:
		granted, wanted = len(c.jobGlobs()) > 0 || c.may(path, mayList), mayList
	case wanted == mayStoreJob:
		granted, wanted = c.mayStoreSome(r.PathValue("job")), mayUpdate
	default:
		granted = c.may(path, wanted)
	}
	if !granted {
		return forbidden(path, wanted)
	}
	return nil
}

func forbidden(path, capability string) error {
	return problem{http.StatusForbidden, fmt.Sprintf("no policy of this token grants %q on %s", capability, path)}
}

// resource returns the path of a request as policies name it: that of its route, with names escaped. It does not use
// the URL's path, which clients may escape in several ways.
func resource(pattern string, r *http.Request) string {
	if pattern == runRoute {
		pattern = strings.TrimSuffix(pattern, "/run")
	}
	_, path, _ := strings.Cut(pattern, " ")
	segments := strings.Split(strings.TrimSuffix(path, "/{$}"), "/")
	for i, s := range segments {
		if name, ok := strings.CutPrefix(s, "{"); ok {
			segments[i] = url.PathEscape(r.PathValue(strings.TrimSuffix(name, "}")))
		}
	}
	return strings.Join(segments, "/")
}

// mayPut returns an error unless the caller of r may store j. It requires rights on the parent as well, because a child
// job reveals when its parent runs.
func mayPut(r *apiCall, j job) error {
	path := jobPath(j.Name)
	switch c := r.caller; {
	case !c.mayStore(j.Name):
		return forbidden(path, mayUpdate)
	case r.query.Has("runoncreate") && !c.may(path, mayCreate):
		return forbidden(path, mayCreate)
	case j.ParentJob != "" && !c.mayStore(j.ParentJob):
		return forbidden(jobPath(j.ParentJob), mayUpdate)
	}
	return nil
}

// checkBootstrap requires the secret in this server's data directory, unless the node that forwarded the request has
// checked its own. It then makes actorBootstrap the caller.
func (a *api) checkBootstrap(c *caller, r *http.Request) error {
	c.token.Accessor = actorBootstrap
	if from, ok := forwardedFrom(r.Context()); ok && from.Actor == actorBootstrap {
		return nil
	}
	doc, err := body(r)
	if err != nil {
		return err
	}
	r.Body = io.NopCloser(bytes.NewReader(doc))
	var sent struct{ Secret string }
	if err := decodeStrict(doc, &sent); err != nil {
		const text = "Secret: must be what the file %s in the server's data directory holds: %v"
		return badRequest(text, bootstrapFile, err)
	}
	got, ok := hashSecret(sent.Secret)
	want, err := readBootstrapSecret(a.dir)
	if err != nil || !ok || !sameHash(got[:], want[:]) {
		return problem{http.StatusForbidden, "Secret: is not what the file " + bootstrapFile + " in this server's " +
			"data directory holds; the file exists while there is no management token and the server runs with --acl"}
	}
	return nil
}

// A response is what a handler returns. One of kept, rows and body is sent, in this order of precedence.
type response struct {
	status int // 0: 200
	header map[string]string
	body   any             // encoded as JSON
	kept   json.RawMessage // JSON as it is, such as the response to the first of two requests with one key
	rows   documents       // a list, sent as it is read

	// serve writes the whole response instead, including the status. It may return an error only before its first byte.
	serve func(w http.ResponseWriter) error
}

// object returns the response with one thing.
func object(body any, err error) (*response, error) { return &response{body: body}, err }

// listed returns the response with a whole list.
func listed[T any](list []T, err error) (*response, error) {
	return &response{header: count(len(list)), body: list}, err
}

// count returns the header with the total number of rows of a list.
func count(n int) map[string]string {
	return map[string]string{"X-Total-Count": strconv.Itoa(n)}
}

// text returns a response that is not JSON.
func text(contentType string, doc []byte) *response {
	return &response{serve: func(w http.ResponseWriter) error {
		w.Header().Set("Content-Type", contentType)
		w.Write(doc) // fails if the client has gone
		return nil
	}}
}

// each returns what fn makes of each element, never nil.
func each[T, V any](list []T, fn func(*T) V) []V {
	views := make([]V, len(list))
	for i := range list {
		views[i] = fn(&list[i])
	}
	return views
}

// handlerFor returns the http.Handler that serves a route.
func (a *api) handlerFor(route route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := &apiCall{Request: r, control: streamTo(w).control, caller: a.callerOf(r)}
		if err := a.serve(w, c, route); err != nil {
			a.fail(w, r, err)
		}
	})
}

// serve runs the route's handler and sends its response. It returns errors from before the first byte only.
func (a *api) serve(w http.ResponseWriter, c *apiCall, route route) (err error) {
	if c.query, err = checkQuery(w, c.Request, route.params); err != nil {
		return err
	}
	if route.writes() {
		c.req, err = a.request(c.Request)
		if err == nil && route.pattern != restoreRoute {
			c.doc, err = body(c.Request)
		}
		if err != nil {
			return err
		}
	}
	res, err := route.handle(c)
	if err != nil {
		return err
	}
	for k, v := range res.header {
		if k == headerWarning {
			v = strings.TrimSpace(w.Header().Get(k) + " " + v)
		}
		w.Header().Set(k, v)
	}
	if res.serve != nil {
		return res.serve(w)
	}
	return a.send(w, c, res)
}

// checkQuery returns the parameters in a query. It refuses a malformed one, and one with a parameter that is probably a
// misspelling. It names others that the route does not read in a header of the response.
func checkQuery(w http.ResponseWriter, r *http.Request, names string) (params, error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		const text = "the query is malformed: %v; separate parameters with & and escape special characters"
		return params{}, badRequest(text, err)
	}
	known, ignored := strings.Fields(names+" pretty"), []string{}
	for _, key := range sortedKeys(q) {
		name := key
		if base, rest, ok := strings.Cut(key, "["); ok && strings.HasSuffix(rest, "]") {
			name = base + "[]"
		}
		if meant := misspelled(name, known); meant != "" {
			meant = strings.Replace(meant, "[]", "[key]", 1)
			return params{}, badRequest("%.40s: there is no such parameter here; write %s", key, meant)
		}
		if !slices.Contains(known, name) && len(ignored) < warningsMax {
			ignored = append(ignored, fmt.Sprintf("The parameter %.40s has no effect.", strconv.QuoteToASCII(key)))
		}
	}
	if len(ignored) > 0 {
		w.Header().Set(headerWarning, strings.Join(ignored, " "))
	}
	return params{Values: q}, nil
}

// params are the parameters in a query. Handlers read all that they need, and then check err.
type params struct {
	url.Values
	err error // what is wrong with the first of them that is invalid
}

func (p *params) fail(format string, args ...any) { p.err = cmp.Or(p.err, badRequest(format, args...)) }

// time reads a time; without the parameter it is otherwise.
func (p *params) time(name string, otherwise time.Time) time.Time {
	if !p.Has(name) {
		return otherwise
	}
	t, err := time.Parse(time.RFC3339Nano, p.Get(name))
	if err != nil {
		p.fail("%s: %q is not a time such as 2030-01-31T12:00:00Z", name, p.Get(name))
	}
	return t
}

// past reads a range of time that ends now by default, and lasts for so long.
func (p *params) past(length time.Duration) (start, end time.Time) {
	end = p.time("end", time.Now())
	return p.time("start", end.Add(-length)), end
}

// number reads a number between 1 and most; without the parameter it is otherwise.
func (p *params) number(name string, otherwise, most int) int {
	if p.Get(name) == "" {
		return otherwise
	}
	n, err := strconv.Atoi(p.Get(name))
	if err != nil || n < 1 || n > most {
		p.fail("%s: must be a number between 1 and %d", name, most)
	}
	return n
}

// outputMax reads how many bytes of each output are wanted. As upstream, what is not a number has no effect.
func (p *params) outputMax(otherwise int) int {
	n, err := strconv.Atoi(p.Get("output_size_limit"))
	if err != nil || n < 0 {
		return otherwise
	}
	return n
}

// page reads a range of rows, [start, end). As upstream, a missing bound means no bound, and one that is not a number
// means 0.
func (p *params) page() (start, end int) {
	bound := func(name string, otherwise int) int {
		if !p.Has(name) {
			return otherwise
		}
		n, err := strconv.Atoi(p.Get(name))
		switch {
		case err != nil:
			return 0
		case n < 0 || n > math.MaxInt32:
			p.fail("%s: must lie between 0 and %d", name, math.MaxInt32)
		}
		return n
	}
	if start, end = bound("_start", 0), bound("_end", math.MaxInt32); start > end {
		p.fail("_end: must not be before _start")
	}
	return start, end
}

// wait reads how long the client waits for the end of what it requests; 0: not at all.
func (p *params) wait() time.Duration {
	patience, err := time.ParseDuration(p.Get("wait"))
	if p.Has("wait") && (err != nil || patience <= 0 || patience > waitMax) {
		p.fail("wait: %q must be a duration of at most %s, such as 30s", p.Get("wait"), waitMax)
	}
	return patience
}

// metadata reads metadata, each as metadata[key]=value.
func (p *params) metadata() map[string]string {
	m := map[string]string{}
	for k, v := range p.Values {
		if name, ok := strings.CutPrefix(k, "metadata["); ok && strings.HasSuffix(name, "]") {
			m[strings.TrimSuffix(name, "]")] = v[0]
		}
	}
	if len(m) > metadataMax {
		p.fail("metadata[key]: jobs can be filtered by at most %d keys, not by %d", metadataMax, len(m))
	}
	return m
}

// documents are the rows of a list as JSON.
type documents = iter.Seq2[json.RawMessage, error]

// shownAs yields rows as show encodes them.
func shownAs[T any](rows iter.Seq2[T, error], show func(T) (json.RawMessage, error)) documents {
	return func(yield func(json.RawMessage, error) bool) {
		for row, err := range rows {
			var doc json.RawMessage
			if err == nil {
				doc, err = show(row)
			}
			if !yield(doc, err) || err != nil {
				return
			}
		}
	}
}

// send writes a response as JSON. It returns errors from before the first byte only. After a later one it aborts the
// connection, so that no client takes a part for the whole.
func (a *api) send(w http.ResponseWriter, c *apiCall, res *response) error {
	out := &responseWriter{
		ResponseWriter: w, api: a, token: c.caller.token.Accessor,
		status: cmp.Or(res.status, http.StatusOK), held: buffers.Get().(*bytes.Buffer),
	}
	defer out.close()
	err := writeResponse(out, res, c.query.Has("pretty"))
	if err == nil {
		err = out.end()
	}
	if err != nil && out.long {
		panic(http.ErrAbortHandler)
	}
	return err
}

// writeResponse encodes a response; with pretty it is as json.Indent would format it.
func writeResponse(w io.Writer, res *response, pretty bool) (err error) {
	shape := func(prefix string, doc []byte) []byte {
		var out bytes.Buffer
		if pretty && json.Indent(&out, doc, prefix, indent) == nil {
			return out.Bytes()
		}
		return doc
	}
	if res.rows == nil {
		doc := []byte(res.kept)
		if doc == nil {
			if doc, err = json.Marshal(res.body); err != nil {
				return err
			}
		}
		_, err = w.Write(shape("", doc))
		return err
	}
	next, between, end := "[", ",", "]"
	if pretty {
		next, between, end = "[\n"+indent, ",\n"+indent, "\n]"
	}
	begin := next
	for doc, err := range res.rows {
		if err == nil {
			_, err = io.WriteString(w, next)
		}
		if err == nil {
			_, err = w.Write(shape(indent, doc))
		}
		if err != nil {
			return err
		}
		next = between
	}
	if next == begin {
		end = "[]"
	}
	_, err = io.WriteString(w, end)
	return err
}

const indent = "    " // as upstream

// responseWriter buffers a response until it is complete or longer than longResponse. A long one is streamed from
// there, or fails with errLongResponses if too many are being streamed.
type responseWriter struct {
	http.ResponseWriter
	api    *api
	token  string // accessor of the caller's token, "" if none
	status int
	held   *bytes.Buffer
	long   bool // streaming has begun
}

func (w *responseWriter) Write(p []byte) (int, error) {
	if w.held.Write(p); w.held.Len() <= longResponse && !w.long || w.held.Len() < chunkBytes {
		return len(p), nil
	}
	if !w.long {
		if !w.api.long.enter(w.token) {
			return 0, errLongResponses
		}
		w.long = true
		w.begin()
	}
	_, err := w.held.WriteTo(w.ResponseWriter)
	return len(p), err
}

func (w *responseWriter) begin() {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(w.status)
}

// end sends the rest.
func (w *responseWriter) end() error {
	if !w.long {
		w.Header().Set("Content-Length", strconv.Itoa(w.held.Len()))
		w.begin()
	}
	_, err := w.held.WriteTo(w.ResponseWriter)
	if !w.long {
		return nil // it fails only if the client has gone
	}
	return err
}

func (w *responseWriter) close() {
	if w.long {
		w.api.long.leave(w.token)
		return
	}
	w.held.Reset()
	buffers.Put(w.held)
}

// buffers holds those of earlier responses, but not of long ones.
var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

var errLongResponses = problem{http.StatusServiceUnavailable, fmt.Sprintf(
	"the response is longer than 1 MiB, and %d such are being sent already, or %d to this token; "+
		"request less with _start and _end, or try again later", longResponsesMax, longResponsesOfToken)}

// longResponses counts the responses that are being streamed.
type longResponses struct {
	mu  sync.Mutex
	all int            // guarded by mu
	of  map[string]int // by accessor of the token; guarded by mu
}

func (l *longResponses) enter(token string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all == longResponsesMax || token != "" && l.of[token] == longResponsesOfToken {
		return false
	}
	if l.of == nil {
		l.of = map[string]int{}
	}
	l.all++
	l.of[token]++
	return true
}

func (l *longResponses) leave(token string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	if l.of[token]--; l.of[token] == 0 {
		delete(l.of, token)
	}
}

// atLeader has the leader execute a write, whichever server received it. The response to a forwarded write names the
// log index that the forwarding server must apply before its client sees the response.
func (a *api) atLeader(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, forwarded := forwardedFrom(r.Context())
		switch {
		case a.plane.leading(), r.Pattern == leaveRoute && !forwarded: // what leaves is the node that was asked
			if forwarded {
				streamTo(w).store = a.store
			}
			next.ServeHTTP(w, r)
		case from.Final:
			a.fail(w, r, errNotLeader)
		default:
			req, err := a.request(r)
			if err == nil {
				err = a.forward(w, r, req.Actor, req.ID)
			}
			if err != nil {
				a.fail(w, r, err)
			}
		}
	})
}

// forward forwards a client's request: a server to the leader, an agent to a server. It writes the response, whatever
// it is, to w after this server has applied what the request changed. After an error nothing was written to w.
// errNotLeader: nothing was done; errUnknown: the fate of the request is unknown.
func (a *api) forward(w http.ResponseWriter, r *http.Request, actor, request string) error {
	to := a.plane.towardsLeader()
	if len(to) == 0 {
		return errNotLeader
	}
	out := streamTo(w)
	out.live = true
	var failed error
	var body *movingBody // nil: there is none
	proxy := httputil.ReverseProxy{
		Transport: a.plane.streams.Transport, ErrorLog: slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
		Rewrite: func(pr *httputil.ProxyRequest) {
			maps.DeleteFunc(pr.Out.Header, func(k string, _ []string) bool {
				return strings.HasPrefix(k, "Belfry-") && k != headerRev
			})
			pr.SetURL(&url.URL{Scheme: "https", Host: to[0].Addr, Path: "/api"})
			pr.Out.URL.RawQuery = pr.In.URL.RawQuery // what cannot be parsed in it is for the leader to say
			a.plane.sign(pr.Out.Header, to[0])
			signFor(pr.Out.Header, pr.In, actor, request)
		},
		ModifyResponse: func(resp *http.Response) error {
			if body != nil && body.incomplete() {
				resp.Header.Set("Connection", "close") // or net/http would first wait for the body
			}
			if err := a.awaitWrite(resp); err != nil {
				return err
			}
			for k := range resp.Header { // those of the node that responds count, X-Whom too
				w.Header().Del(k)
			}
			if resp.StatusCode < http.StatusMultipleChoices && strings.HasPrefix(r.URL.Path, "/v1") {
				connAdmitted(r) // the page needs no token
			}
			return nil
		},
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, err error) { failed = err },
	}
	if r.ContentLength != 0 {
		body = &movingBody{ReadCloser: r.Body, control: out.control, uploads: &a.uploads}
		a.uploads.add(body)
		defer body.Close()
		r = r.WithContext(r.Context())
		r.Body = body
	} else {
		_ = out.control.SetReadDeadline(time.Time{}) // the body is complete
	}
	proxy.ServeHTTP(out, r)
	if failed != nil && body != nil && body.incomplete() {
		w.Header().Set("Connection", "close") // or the rest of the body would be read as the next request
	}
	var large *http.MaxBytesError
	switch {
	case failed == nil:
		return nil
	case errors.As(failed, &large):
		return failed
	case errors.Is(failed, errRefused):
		return fmt.Errorf("%w: %w", errNotLeader, failed)
	}
	return fmt.Errorf("%w: %w", errUnknown, failed)
}

// signFor adds for whom a request is forwarded, and the id under which it is done once.
func signFor(h http.Header, r *http.Request, actor, request string) {
	h.Set(headerActor, actor)
	h.Set(headerClient, clientAddr(r))
	h.Set(headerRequest, request)
}

// awaitWrite delays the response to a write until this server has applied it, so that the client reads its own writes
// here.
func (a *api) awaitWrite(resp *http.Response) error {
	index, _ := strconv.ParseUint(resp.Header.Get(headerIndex), 10, 64) // 0: there is nothing to wait for
	switch {
	case resp.Header.Get(headerRefused) != "":
		return readRefusal(resp)
	case index == 0 || a.plane.server == nil:
		return nil
	}
	ctx, cancel := context.WithTimeout(resp.Request.Context(), leaderTimeout)
	defer cancel()
	if err := a.plane.server.waitApplied(ctx, index); err != nil {
		return fmt.Errorf("the leader has done it, this server has not seen it yet: %w", err)
	}
	return nil
}

// uploads are the forwarded requests whose bodies are incomplete. Each holds a connection to another node, so there is
// a bound: clients that withhold bodies keep nobody else from being forwarded.
type uploads struct {
	mu         sync.Mutex
	incomplete linked.List // of *movingBody, the one without progress for longest first; guarded by mu
}

// movingBody is the body of a forwarded request. It may take as long as it makes progress, and the response then as
// long as it takes: the node that responds has limits of its own.
type movingBody struct {
	io.ReadCloser
	control *http.ResponseController
	uploads *uploads
	read    int             // bytes since the deadline was moved
	place   *linked.Element // in uploads.incomplete; nil once complete or ended; guarded by uploads.mu
	whole   bool            // it was read to its end; guarded by uploads.mu
}

// longAgo is a deadline that ends a pending read at once.
var longAgo = time.Unix(1, 0)

// errWithheld is returned by a read of a body that was ended before it was complete.
var errWithheld = errors.New("the body is incomplete, and was not waited for any longer")

// add enters an upload. Beyond the bound it ends the one without progress for longest.
func (u *uploads) add(b *movingBody) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.incomplete.Len() >= uploadsMax {
		u.incomplete.Front().Value.(*movingBody).leaveLocked(longAgo)
	}
	b.place = u.incomplete.PushBack(b)
}

// leaveLocked removes an upload, unless that is done, and sets the deadline for reading on.
func (b *movingBody) leaveLocked(deadline time.Time) {
	if b.place != nil {
		b.uploads.incomplete.Remove(b.place)
		b.place = nil
		_ = b.control.SetReadDeadline(deadline) // where there is no deadline none is moved
	}
}

// Close implements io.Closer. Once the response is sent, nobody waits for the rest of the body, and net/http must not.
func (b *movingBody) Close() error {
	b.uploads.mu.Lock()
	b.leaveLocked(longAgo)
	b.uploads.mu.Unlock()
	return b.ReadCloser.Close()
}

func (b *movingBody) incomplete() bool {
	b.uploads.mu.Lock()
	defer b.uploads.mu.Unlock()
	return !b.whole
}

// Read implements io.Reader.
func (b *movingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.uploads.mu.Lock()
	defer b.uploads.mu.Unlock()
	b.read += n
	switch {
	case err == io.EOF:
		b.whole = true
		b.leaveLocked(time.Time{})
	case b.place == nil:
		err = errWithheld
	case b.read >= progressBytes:
		b.read = 0
		_ = b.control.SetReadDeadline(time.Now().Add(readTimeout))
		b.uploads.incomplete.MoveToBack(b.place)
	}
	return n, err
}

// A problem is an error for the client, with its HTTP status.
type problem struct {
	status  int
	message string
}

func (p problem) Error() string { return p.message }

func badRequest(format string, args ...any) error {
	return problem{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// fail responds with an error. It logs the server's own errors, whose cause clients are not told. As upstream, a 404
// has no text.
func (a *api) fail(w http.ResponseWriter, r *http.Request, err error) {
	p := a.problem(err)
	if r.ContentLength != 0 && (p.status == http.StatusUnauthorized || p.status == http.StatusForbidden) {
		w.Header().Set("Connection", "close") // or net/http would first wait for the body
	}
	if p.status == http.StatusInternalServerError || errors.Is(err, errUnreadable) {
		a.log.Error("a request failed", "method", r.Method, "path", r.URL.Path, "err", err)
	}
	switch p.status {
	case http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", retryAfter)
	case http.StatusForbidden:
		a.countRefusal(r, refusedForbidden)
	case http.StatusUnauthorized:
		a.countRefusal(r, refusedToken)
		w.Header().Set("WWW-Authenticate", `Bearer realm="belfry"`)
	case http.StatusNotFound:
		w.WriteHeader(p.status)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(p.status)
	io.WriteString(w, p.message)
}

// isAny reports whether err is one of targets.
func isAny(err error, targets ...error) bool {
	return slices.ContainsFunc(targets, func(target error) bool { return errors.Is(err, target) })
}

// problem returns the status and the text for an error.
func (a *api) problem(err error) problem {
	var p problem
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &p):
		return p
	case errors.As(err, &large):
		return problem{http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is larger than %d bytes", large.Limit)}
	case errors.As(err, new(badFile)):
		return problem{http.StatusBadRequest, "nothing was stored, because these jobs are invalid:\n" + err.Error()}
	case errors.As(err, new(badInput)):
		return problem{http.StatusBadRequest, "the job is invalid: " + err.Error()}
	case isAny(err, errNoJob, errNoExecution, errNoPolicy, errNoToken, errNoServer, errNoRule):
		return problem{http.StatusNotFound, ""}
	case isAny(err, errParent, errParentCycle, errChildren, errAncestors, errNoParam, errNoCalendar):
		return problem{http.StatusBadRequest, err.Error()}
	case isAny(err, errRules, errCalendarUsed, errJobDisabled, errNoNode, errHasChildren, errFinished, errBuiltIn,
		errManaged, errTokenShown, errConflict, errUndecided, errAliveVoter, errLastVoter):
		return problem{http.StatusConflict, err.Error()}
	case errors.Is(err, errRev):
		return problem{http.StatusPreconditionFailed, err.Error()}
	case errors.Is(err, errKeyUsed):
		return problem{http.StatusUnprocessableEntity, err.Error()}
	case errors.Is(err, errTooLarge):
		return problem{http.StatusRequestEntityTooLarge, err.Error()}
	case errors.Is(err, errUnknown): // even if it wraps one of the errors below
		return problem{http.StatusGatewayTimeout, err.Error()}
	case errors.Is(err, errNotLeader):
		const text = "no leader is known, so nothing was done; try again, and see \"belfry raft list-peers\""
		return problem{http.StatusServiceUnavailable, text}
	case isAny(err, errPaused, errRestoring, errBrokenOff, errBusy, context.Canceled):
		return problem{http.StatusServiceUnavailable, err.Error()}
	case errors.Is(err, context.DeadlineExceeded):
		return problem{http.StatusGatewayTimeout, err.Error()}
	case errors.Is(err, errUnreadable): // another server may do better
		return problem{http.StatusServiceUnavailable, errUnreadable.Error()}
	}
	return problem{http.StatusInternalServerError, "internal error; the server's log says more"}
}

// request returns what a write needs to know about r: its actor, and the id under which it is executed only once. The
// id is the client's Idempotency-Key, per method and path as in the IETF draft; without one it is new.
func (a *api) request(r *http.Request) (request, error) {
	req := request{Actor: actorAnonymous, Address: clientAddr(r), ID: newRequestID()}
	if from, ok := forwardedFrom(r.Context()); ok {
		req.Actor, req.ID = from.Actor, from.Request
	}
	c := a.callerOf(r)
	req.Actor = cmp.Or(c.token.Accessor, req.Actor)
	if text := r.Header.Get(headerRev); text != "" {
		rev, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			const must = "%s: %.40q is not a number; send the number that came with the job"
			return req, badRequest(must, headerRev, text)
		}
		req.Rev = &rev
	}
	key := r.Header.Get("Idempotency-Key")
	if len(key) > keyBytesMax {
		return req, badRequest("Idempotency-Key: must not be longer than %d bytes", keyBytesMax)
	}
	if key != "" {
		req.ID = r.Method + " " + r.URL.Path + " " + key
		if a.acl { // nobody gets the response to another's request
			req.ID = req.Actor + " " + req.ID
		}
		req.Keep = func(row *jobRow) string {
			doc, err := shown(c, row)
			if err != nil {
				return ""
			}
			return string(doc)
		}
	}
	return req, nil
}

// newRequestID returns a unique id. It begins with the time, so that ids of the same time are neighbours in the index.
func newRequestID() string {
	return strconv.FormatInt(time.Now().UnixMicro(), 36) + crand.Text()
}

// shown returns the JSON of a job as a caller sees it; its secrets are hidden from callers that may not change it.
func shown(c *caller, row *jobRow) (json.RawMessage, error) {
	doc, err := json.Marshal(row)
	if err == nil && row != nil {
		doc, err = jobShown(c, doc)
	}
	return doc, err
}

// jobResponse returns the response to a write: its job, or, for a repeated request, the first response.
func jobResponse(r *apiCall, row *jobRow, res applied, err error) (*response, error) {
	if err != nil {
		return nil, err
	}
	if res.repeated() && res.Answer != "" {
		return &response{kept: json.RawMessage(res.Answer)}, nil
	}
	doc, err := shown(r.caller, row)
	return &response{kept: doc}, err
}

// writeJob returns the handler for a write of the scheduler that needs only the name of its job.
func (a *api) writeJob(write func(context.Context, request, string) (*jobRow, applied, error)) handler {
	return func(r *apiCall) (*response, error) {
		row, res, err := write(r.Context(), r.req, r.PathValue("job"))
		return jobResponse(r, row, res, err)
	}
}

// bodyMax returns the largest body that a route accepts, in bytes.
func (r route) bodyMax() int64 {
	switch r.pattern {
	case restoreRoute:
		return restoreBytesMax
	case "POST /v1/acl/policies/{name}", calendarRoute:
		return policyBytesMax
	case "POST /v1/acl/tokens", bootstrapRoute:
		return tokenBytesMax
	}
	return jobBytesMax
}

// limited refuses a compressed body, and one of more than limit bytes: before reading it if it has a Content-Length.
func (a *api) limited(limit int64, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		coding := cmp.Or(r.Header.Get("Content-Encoding"), "identity")
		switch {
		case r.ContentLength > limit:
			a.fail(w, r, &http.MaxBytesError{Limit: limit})
			return
		case r.ContentLength != 0 && !strings.EqualFold(coding, "identity"):
			text := fmt.Sprintf("Content-Encoding: %q is not supported; send the body as it is", coding)
			a.fail(w, r, problem{http.StatusUnsupportedMediaType, text})
			return
		case r.Body != nil:
			r.Body = http.MaxBytesReader(w, r.Body, limit)
		}
		next.ServeHTTP(w, r)
	})
}

// body reads a whole request body, up to the limit that limited has set.
func body(r *http.Request) ([]byte, error) {
	doc, err := io.ReadAll(r.Body)
	var large *http.MaxBytesError
	if err != nil && !errors.As(err, &large) {
		err = badRequest("the body is incomplete: %v", err)
	}
	if doc = bytes.TrimPrefix(doc, byteOrderMark); err == nil && !utf8.Valid(doc) {
		err = badRequest("the body must be UTF-8")
	}
	return doc, err
}

// byteOrderMark is what some editors write at the beginning of a UTF-8 file.
var byteOrderMark = []byte("\ufeff")

// putJob stores a job, and with runoncreate runs it. The status tells whether the job was stored; if it could not be
// run, the header Belfry-Not-Run says why.
func (a *api) putJob(r *apiCall) (*response, error) {
	if a.store.shown.Load().paused {
		return nil, errPaused
	}
	j, err := decodeJob(r.doc, job{Concurrency: concurrencyAllow})
	if err != nil {
		return nil, badInput{err}
	}
	if err := mayPut(r, j); err != nil {
		return nil, err
	}
	if name := r.PathValue("job"); name != "" && name != j.Name {
		return nil, badRequest("name: %q differs from %q in the path", j.Name, name)
	}
	row, done, err := a.scheduler.put(r.Context(), r.req, j)
	res, err := jobResponse(r, row, done, err)
	if err != nil {
		return nil, err
	}
	res.status, res.header = http.StatusCreated, jobHeader(j.Name, int64(cmp.Or(done.First, done.Index)))
	if w := j.warning(a.scheduler.courier); w != "" {
		res.header[headerWarning] = w
		if !done.repeated() {
			a.log.Warn("a job was stored with a warning", "job", j.Name, "warning", w)
		}
	}
	if r.query.Has("runoncreate") {
		again := r.req
		// The id is unique: others begin with a method, a token or a time.
		again.ID, again.Keep, again.Rev = "run of "+r.req.ID, nil, nil
		_, run, err := a.scheduler.runNow(r.Context(), again, j.Name)
		switch {
		case err != nil && a.problem(err).status >= http.StatusInternalServerError:
			return nil, fmt.Errorf("the job was stored, but could not be run: %w", err)
		case err != nil:
			res.header["Belfry-Not-Run"] = err.Error()
		case run.Refused != "":
			res.header["Belfry-Not-Run"] = run.Refused
		}
	}
	return res, nil
}

const (
	headerWarning = "Belfry-Warning" // which settings of a stored job, or which parameters of a query, have no effect
	headerRev     = "Belfry-Rev"     // of the job in the response; in a request, of the job that the client has seen
)

// jobHeader returns the headers of a response with a job: its path and, unless it is 0, its rev. Differs: upstream
// appends the name to the request URI, including the query.
func jobHeader(name string, rev int64) map[string]string {
	header := map[string]string{"Location": jobPath(name)}
	if rev != 0 {
		header[headerRev] = strconv.FormatInt(rev, 10)
	}
	return header
}

func (a *api) showJob(r *apiCall) (*response, error) {
	held, err := a.store.docs.one(a.store, r.PathValue("job"))
	if err != nil {
		return nil, err
	}
	header := map[string]string{headerRev: strconv.FormatInt(held.rev, 10)}
	if warning := held.warning(); warning != "" {
		header[headerWarning] = warning
	}
	doc, err := jobShown(r.caller, held.doc)
	return &response{kept: doc, header: header}, err
}

// toggleJob enables a disabled job and disables an enabled one or, with disabled in the query, makes it what that says.
func (a *api) toggleJob(r *apiCall) (*response, error) {
	var disabled *bool
	if r.query.Has("disabled") {
		to, err := strconv.ParseBool(r.query.Get("disabled"))
		if err != nil {
			return nil, badRequest("disabled: %q must be true or false", r.query.Get("disabled"))
		}
		disabled = &to
	}
	row, done, err := a.scheduler.toggle(r.Context(), r.req, r.PathValue("job"), disabled)
	res, err := jobResponse(r, row, done, err)
	if err == nil {
		res.header = jobHeader(r.PathValue("job"), int64(cmp.Or(done.First, done.Index)))
	}
	return res, err
}

// decodeBody decodes JSON into v. It refuses unknown fields, and names one of a wrong type.
func decodeBody(doc []byte, v any) error {
	err := decodeStrict(doc, v)
	if typ, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		err = typeError(doc, typ)
	}
	return err
}

// runParams reads the parameters in the body of a run by hand.
func runParams(doc []byte) (map[string]string, error) {
	var sent struct {
		Params map[string]string `json:"params"`
	}
	if len(doc) == 0 {
		return nil, nil
	}
	if err := cmp.Or(decodeBody(doc, &sent), checkParams(sent.Params)); err != nil {
		return nil, badRequest("the body is not as in {\"params\": {\"date\": \"2026-11-01\"}}: %v", err)
	}
	return sent.Params, nil
}

// runJob starts a job and returns at once, with the job as it was before and, unless the run must wait until it may
// start, its group. With wait it returns when the run has ended, with the job as it is then, or after that time.
// Differs: upstream always waits.
func (a *api) runJob(r *apiCall) (*response, error) {
	patience, name := r.query.wait(), r.PathValue("job")
	if r.query.err != nil {
		return nil, r.query.err
	}
	var err error
	r.req.Force = r.query.Has("force")
	if r.req.Params, err = runParams(r.doc); err != nil {
		return nil, err
	}
	row, done, err := a.scheduler.runNow(r.Context(), r.req, name)
	if err == nil && done.Refused != "" {
		err = problem{http.StatusConflict, done.Refused}
	}
	res, err := jobResponse(r, row, done, err)
	if err != nil {
		return nil, err
	}
	res.status, res.header = http.StatusAccepted, jobHeader(name, 0)
	if row != nil { // else it was started before
		res.header = jobHeader(name, row.version.Rev)
	}
	group := key(cmp.Or(done.First, done.Index), 0)
	switch _, err := a.store.clients.execution(group); {
	case err == nil:
		res.header["Belfry-Group"] = strconv.FormatInt(group, 10)
	case !errors.Is(err, errNoExecution):
		return nil, err
	default: // it waits
		patience = 0
	}
	return a.await(r, res, patience, func() (bool, error) { return a.store.clients.groupOpen(group) }, func() {
		if now, err := a.store.job(name); err == nil { // else it is deleted, as an ephemeral one
			res.kept, _ = shown(r.caller, now)
		}
	}), nil
}

// await returns a response that waits until open reports false. Then finish completes it, and its status is 200. After
// patience, or when this node stops, it is sent as it is, with 202. Without patience await returns res.
func (a *api) await(r *apiCall, res *response, patience time.Duration, open func() (bool, error), finish func(),
) *response {
	if patience == 0 {
		return res
	}
	return &response{header: res.header, serve: func(w http.ResponseWriter) error {
		_ = r.control.SetReadDeadline(time.Time{}) // it would end the context
		for over := time.After(patience); ; {
			runs, err := open()
			if err != nil {
				return err
			}
			if !runs {
				res.status = http.StatusOK
				finish()
				return a.send(w, r, res)
			}
			select {
			case <-time.After(lookPause):
				continue
			case <-r.Context().Done():
				return nil
			case <-over:
			case <-a.stopping:
			}
			res.status = http.StatusAccepted
			return a.send(w, r, res)
		}
	}}
}

// restore stores the jobs of an uploaded file, all or none, and responds with a line for each. With dry-run it only
// checks them; with prune it also deletes the jobs with the metadata in the query that are not in the file. It streams
// the file, so its memory grows only with the names in it.
func (a *api) restore(r *apiCall) (*response, error) {
	opt := restoreOption{DryRun: r.query.Has("dry-run")}
	if r.query.Has("prune") {
		if opt.Prune = r.query.metadata(); len(opt.Prune) == 0 {
			r.query.fail("prune: name the jobs that the file replaces, with metadata[key]=value")
		}
	}
	switch {
	case a.store.shown.Load().paused:
		return nil, errPaused
	case r.query.err != nil:
		return nil, r.query.err
	case opt.Prune != nil && !r.caller.may("/v1/restore", mayDelete):
		return nil, forbidden("/v1/restore", mayDelete)
	}
	return &response{serve: func(w http.ResponseWriter) error {
		file, err := uploadedFile(r.Request)
		if err != nil {
			return err
		}
		// A large file may take longer than other requests, as long as it keeps arriving.
		jobs := uploadedJobs(file, func() { _ = r.control.SetReadDeadline(time.Now().Add(readTimeout)) })
		warned, first := 0, ""
		done, err := a.scheduler.restore(r.Context(), r.req, func(yield func(job, error) bool) {
			for j, err := range jobs {
				if err == nil && j.warning(a.scheduler.courier) != "" {
					warned, first = warned+1, cmp.Or(first, url.PathEscape(j.Name))
				}
				if !yield(j, err) {
					return
				}
			}
		}, opt)
		switch {
		case err != nil:
			return err
		case opt.DryRun:
			return a.send(w, r, &response{body: []string{}})
		case warned > 0:
			const text = "%d jobs have a warning, which GET /v1/jobs/{job} returns; the first is %s."
			w.Header().Set(headerWarning, fmt.Sprintf(text, warned, first))
			a.log.Warn("jobs were restored with a warning, which their pages show", "jobs", warned, "first", first)
		}
		names, err := a.store.clients.stagedNames(done.ID)
		if err != nil || len(names) != done.Jobs {
			panic(http.ErrAbortHandler) // the jobs are stored, so neither an error nor a partial list would be true
		}
		line := func(part []string) ([]json.RawMessage, error) {
			doc, err := json.Marshal("success create " + part[0])
			return []json.RawMessage{doc}, err
		}
		return a.send(w, r, &response{rows: inParts(names, 1, line)})
	}}, nil
}

// uploadedFile returns the part "file" of a multipart form.
func uploadedFile(r *http.Request) (io.Reader, error) {
	form, err := r.MultipartReader()
	for err == nil {
		var part *multipart.Part
		if part, err = form.NextPart(); err == nil && part.FormName() == "file" {
			return part, nil
		}
	}
	if errors.As(err, new(*http.MaxBytesError)) {
		return nil, err
	}
	return nil, badRequest("the body must be multipart/form-data with a part \"file\": %v", err)
}

// uploadedJobs yields the jobs of a JSON array. After a badInput, which has the job's name if it can be read, it goes
// on; after any other error it stops. It holds one job at a time, and calls progress after every progressBytes.
func uploadedJobs(file io.Reader, progress func()) iter.Seq2[job, error] {
	return func(yield func(job, error) bool) {
		src := &io.LimitedReader{R: &progressReader{file, progress, 0}, N: jobBytesMax + 1}
		text := bufio.NewReader(src)
		if mark, _ := text.Peek(len(byteOrderMark)); bytes.Equal(mark, byteOrderMark) {
			text.Discard(len(mark)) // cannot fail
		}
		d := json.NewDecoder(text)
		if t, err := d.Token(); err != nil || t != json.Delim('[') {
			yield(job{}, uploadError(err, "must contain a JSON array of jobs"))
			return
		}
		for n := 1; ; n++ {
			src.N = jobBytesMax + 1 // what was read ahead counts for the job before
			if !d.More() {
				break
			}
			var doc json.RawMessage
			err := d.Decode(&doc)
			switch {
			case n > restoreJobsMax:
				err = tooLarge("a file may contain at most %d jobs; split it", restoreJobsMax)
			case err != nil && src.N == 0:
				err = tooLarge("a job in the file is larger than %d bytes", jobBytesMax)
			case err != nil:
				err = uploadError(err, fmt.Sprintf("is not valid JSON at job %d", n))
			}
			if err != nil {
				yield(job{}, err)
				return
			}
			j, err := decodeFields(doc)
			if err == nil && !utf8.Valid(doc) {
				err = errors.New("must be UTF-8")
			}
			if err != nil {
				err = badInput{err}
			}
			if !yield(j, err) {
				return
			}
		}
		if _, err := d.Token(); err != nil {
			yield(job{}, uploadError(err, "must end with the end of the array"))
			return
		}
		if _, err := d.Token(); err != io.EOF || src.N == 0 {
			yield(job{}, uploadError(err, "must contain nothing after the array"))
		}
	}
}

func tooLarge(format string, limit int) error {
	return problem{http.StatusRequestEntityTooLarge, fmt.Sprintf(format, limit)}
}

// decodeFields is decodeJob whose error has a clause for each field of a wrong type, and which returns the others.
func decodeFields(doc []byte) (job, error) {
	j, err := decodeJob(doc, job{})
	var fields map[string]json.RawMessage
	if err == nil || json.Unmarshal(doc, &fields) != nil {
		return j, err
	}
	var texts []string
	for _, name := range sortedKeys(fields) {
		one, _ := json.Marshal(map[string]json.RawMessage{name: fields[name]}) // which was just read
		with, e := decodeJob(one, j)
		if e == nil {
			j = with
		} else if texts = append(texts, e.Error()); name == "schedule" {
			j.Schedule = "@manually" // it is not missing
		}
	}
	if texts != nil {
		err = errors.New(strings.Join(texts, "; "))
	}
	return j, err
}

// uploadError returns the error for a file that could not be read to its end.
func uploadError(err error, why string) error {
	switch {
	case errors.As(err, new(*http.MaxBytesError)):
		return err
	case err == nil:
		return badRequest("file: %s", why)
	}
	return badRequest("file: %s: %v", why, err)
}

// progressReader calls progress after every progressBytes.
type progressReader struct {
	io.Reader
	progress func()
	since    int // bytes read since the last call
}

func (r *progressReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if r.since += n; r.since >= progressBytes {
		r.since = 0
		r.progress()
	}
	return n, err
}

func (a *api) listJobs(r *apiCall) (*response, error) {
	q, c := &r.query, r.caller
	f := jobFilter{
		Text: q.Get("q"), Status: q.Get("status"), Disabled: q.Get("disabled"), Executor: q.Get("executor"),
		Owner: q.Get("owner"), Sort: q.Get("_sort"), Desc: q.Get("_order") == "DESC", Metadata: q.metadata(),
	}
	if _, ok := jobOrder[f.Sort]; !ok {
		q.fail("_sort: jobs cannot be sorted by %q", f.Sort)
	}
	start, end := q.page()
	switch {
	case q.err != nil:
		return nil, q.err
	case f.Sort == "executor_config" && !c.mayStoreAll():
		const text = "_sort: the order of executor_config would reveal what is hidden from this token"
		return nil, problem{http.StatusForbidden, text}
	case !c.all:
		f.Globs = c.jobGlobs()
	}
	docs, total, err := a.store.jobs(f, start, end)
	show := func(doc json.RawMessage) (json.RawMessage, error) { return jobShown(c, doc) }
	return &response{header: count(total), rows: shownAs(docs, show)}, err
}

// jobShown returns the JSON of a job as a caller sees it.
func jobShown(c *caller, doc json.RawMessage) (json.RawMessage, error) {
	var row struct {
		Name string `json:"name"`
	}
	if c.all {
		return doc, nil
	}
	if err := json.Unmarshal(doc, &row); err != nil || c.mayStore(row.Name) {
		return doc, err
	}
	return hideSecrets(doc)
}

// executionView is an execution as clients see it.
type executionView struct {
	ID              string    `json:"id"`
	JobName         string    `json:"job_name"`
	StartedAt       time.Time `json:"started_at"`
	FinishedAt      time.Time `json:"finished_at"`
	Success         bool      `json:"success"`
	Output          string    `json:"output,omitempty"`
	OutputTruncated *bool     `json:"output_truncated,omitempty"`
	NodeName        string    `json:"node_name"`
	Group           int64     `json:"group"`
	Attempt         int       `json:"attempt"`

	// The rest is ours.
	Reason        string            `json:"reason,omitempty"`         // why it failed; the output contains it too
	Outcome       string            `json:"outcome"`                  // one of runOutcomes; "" while it runs
	Cause         string            `json:"cause"`                    // tick, child, retry or hand
	Params        map[string]string `json:"params,omitempty"`         // that a run by hand was given
	ScheduledAt   time.Time         `json:"scheduled_at"`             // when the tick was due, or the run was requested
	OutputDropped int64             `json:"output_dropped,omitempty"` // bytes, from the beginning

	ExitCode    *int    `json:"exit_code,omitempty"`         // of the first process, if it exited by itself
	Signal      string  `json:"signal,omitempty"`            // that ended the first process
	CPUSeconds  float64 `json:"cpu_seconds,omitempty"`       // of the first process and the children that it waited for
	MemoryBytes int64   `json:"peak_memory_bytes,omitempty"` // of the largest of these
}

// view returns an execution with its times in zone.
func (e *executionRow) view(zone *time.Location) executionView {
	v := executionView{
		ID: executionName(e.ID, e.Node), JobName: e.JobName, NodeName: e.Node, Group: e.Group, Attempt: e.Attempt,
		ScheduledAt: timeOf(e.Due).In(zone), StartedAt: timeOf(e.Started).In(zone), Outcome: e.Outcome,
		Success: e.Outcome == outcomeSuccess, Cause: e.Cause, Params: hideParams(e.Params),
		Reason: strings.TrimSpace(string(e.Reason)), Output: string(e.Output), OutputDropped: e.Dropped,
		ExitCode: e.Process.ExitCode, Signal: e.Process.Signal,
		CPUSeconds: time.Duration(e.Process.CPU).Seconds(), MemoryBytes: e.Process.Memory,
	}
	if e.Finished != 0 {
		v.FinishedAt = timeOf(e.Finished).In(zone)
	}
	return v
}

// endTime returns a time in UTC, and the zero time for 0: what has not happened yet.
func endTime(nanos int64) time.Time {
	if nanos == 0 {
		return time.Time{}
	}
	return timeOf(nanos)
}

// addPrinted sets the output of running executions in list to what they have printed so far: the last bytes, at most
// outputMax and printedBytesMax. It asks all their nodes at once, and leaves the output empty where a node does not
// respond within printedPatience.
func (a *api) addPrinted(ctx context.Context, list []executionRow, outputMax int) {
	running := map[string][]int64{} // by node
	for _, e := range list {
		if e.Finished == 0 && outputMax > 0 {
			running[e.Node] = append(running[e.Node], e.ID)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, printedPatience)
	defer cancel()
	var nodes sync.WaitGroup
	for node, ids := range running {
		nodes.Go(func() {
			printed, _ := a.plane.printedOn(ctx, node, ids) // on an error the list lacks these outputs
			for i := range list {
				if output, ok := printed[list[i].ID]; ok && list[i].Node == node {
					list[i].Output, list[i].OutputSize = output, len(output)
					list[i].cut(min(outputMax, printedBytesMax))
				}
			}
		})
	}
	nodes.Wait()
}

// listExecutions returns executions, newest first, with times in the job's zone, as upstream does.
func (a *api) listExecutions(r *apiCall) (*response, error) {
	q := &r.query
	if _, ok := executionOrder[q.Get("_sort")]; !ok {
		q.fail("_sort: executions cannot be sorted by %q", q.Get("_sort"))
	}
	start, end := q.page()
	if q.err != nil {
		return nil, q.err
	}
	row, err := a.store.clients.job(r.PathValue("job"))
	if err != nil {
		return nil, err
	}
	zone, err := loadZone(row.zone(a.scheduler.timezone()))
	if err != nil { // this server's time zone database lacks it
		zone = time.UTC
	}
	newestFirst := !strings.EqualFold(q.Get("_order"), "ASC")
	list, total, err := a.store.clients.executions(row.version.ID, q.Get("_sort"), newestFirst, start, end)
	if err != nil {
		return nil, err
	}
	limit := q.outputMax(outputBytesMax)
	a.addPrinted(r.Context(), list, limit)
	show := func(e executionRow) (json.RawMessage, error) {
		truncated := e.OutputSize > len(e.Output)
		v := e.view(zone)
		v.OutputTruncated = &truncated
		return json.Marshal(v)
	}
	rows := a.store.clients.withOutputs(list, limit)
	return &response{header: count(total), rows: shownAs(rows, show)}, nil
}

func (a *api) showExecution(r *apiCall) (*response, error) {
	e, err := a.execution(r)
	if err != nil {
		return nil, err
	}
	list := []executionRow{e}
	a.addPrinted(r.Context(), list, outputBytesMax)
	return object(list[0].view(time.UTC), nil)
}

// execution returns the execution in the path. It must belong to the present job of that name.
func (a *api) execution(r *apiCall) (executionRow, error) {
	row, err := a.store.clients.job(r.PathValue("job"))
	if err != nil {
		return executionRow{}, err
	}
	e, err := a.anyExecution(r)
	if err == nil && e.JobID != row.version.ID {
		err = errNoExecution
	}
	return e, err
}

// anyExecution returns the execution in the path, which may belong to a deleted job. If a job is in the path, it must
// have that name.
func (a *api) anyExecution(r *apiCall) (executionRow, error) {
	id, node, _ := strings.Cut(r.PathValue("execution"), "-")
	n, err := strconv.ParseInt(id, 10, 64)
	if err != nil {
		return executionRow{}, errNoExecution
	}
	e, err := a.store.clients.execution(n)
	if name := r.PathValue("job"); err == nil && (e.Node != node || name != "" && e.JobName != name) {
		err = errNoExecution
	}
	return e, err
}

// findExecution returns an execution without its output, and so its job. It needs the right to read the execution under
// its job; without it there is none, so that nobody learns of executions by guessing. Ours.
func (a *api) findExecution(r *apiCall) (*response, error) {
	e, err := a.anyExecution(r)
	path := jobPath(e.JobName) + "/executions/" + url.PathEscape(r.PathValue("execution"))
	if err == nil && !r.caller.may(path, mayRead) {
		err = errNoExecution
	}
	e.Output = nil
	return object(e.view(time.UTC), err)
}

// showOutput returns an output as text: once the execution has finished, ranges of it; before that, what there is so
// far or, with follow in the query, everything until it ends. Followed, it has what was printed, without the reason why
// the execution failed.
func (a *api) showOutput(r *apiCall) (*response, error) {
	e, err := a.execution(r)
	if err != nil {
		return nil, err
	}
	return &response{serve: func(w http.ResponseWriter) error {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if e.Finished == 0 {
			err := a.runningOutput(w, r, e)
			if !errors.Is(err, errUnknownExecution) {
				return err
			}
			// The execution has finished meanwhile, or its node has lost it.
			if e, err = a.execution(r); err != nil {
				return err
			}
		}
		output := e.Output
		if r.query.Has("follow") { // the same whether or not the execution ends first
			output = bytes.TrimPrefix(output, e.Reason)
		}
		http.ServeContent(w, r.Request, "", timeOf(e.Finished), bytes.NewReader(output))
		return nil
	}}, nil
}

// runningOutput copies the output from the execution's node. It returns errors from before the first byte only; a later
// one aborts the response.
func (a *api) runningOutput(w http.ResponseWriter, r *apiCall, e executionRow) error {
	out, follow := streamTo(w), r.query.Has("follow")
	w.Header().Set("X-Accel-Buffering", "no") // or nginx would buffer it until the end
	if out.live = true; follow {
		_ = out.control.SetReadDeadline(time.Time{}) // it may run for days
	}
	ctx, stop := a.whileAdmitted(r)
	defer stop()
	err := a.plane.outputFrom(ctx, e.Node, e.ID, follow, 0, out)
	switch {
	case err != nil && out.began:
		panic(http.ErrAbortHandler) // the client must not take a part for the whole
	case err != nil && ctx.Err() != nil && r.Context().Err() == nil:
		err = errUnauthenticated
	case err != nil && !errors.Is(err, errUnknownExecution) && r.Context().Err() == nil:
		a.log.Warn("the output of a running execution could not be read from its node", "node", e.Node, "err", err)
		text := fmt.Sprintf("node %s does not respond, and only it has the output until the execution ends", e.Node)
		err = problem{http.StatusServiceUnavailable, text}
	}
	return err
}

// whileAdmitted returns a context for the request that also ends when the caller loses the right to read outputs.
func (a *api) whileAdmitted(r *apiCall) (context.Context, context.CancelFunc) {
	ctx, stop := context.WithCancel(r.Context())
	if a.acl {
		go func() {
			for pause(ctx, admitPolls*pollTime) == nil {
				if _, err := a.admit(route{pattern: outputRoute, capability: mayRead}, r.Request); err != nil {
					stop()
				}
			}
		}()
	}
	return ctx, stop
}

// killExecution has an execution killed and returns at once, with the execution as it is then. Its processes get
// SIGTERM, and after the grace time SIGKILL.
func (a *api) killExecution(r *apiCall) (*response, error) {
	e, err := a.anyExecution(r)
	if err == nil {
		err = a.scheduler.kill(r.Context(), r.req, e)
	}
	if err != nil {
		return nil, err
	}
	e, err = a.anyExecution(r)
	return &response{status: http.StatusAccepted, body: e.view(time.UTC)}, err
}

// tickView is a tick as clients see it.
type tickView struct {
	Due        time.Time  `json:"due"`             // the first, if it is a range of ticks
	Until      *time.Time `json:"until,omitempty"` // the last in the range
	Count      int64      `json:"count,omitempty"` // in the range
	Outcome    string     `json:"outcome"`
	Reason     string     `json:"reason,omitempty"`
	Executions []string   `json:"executions,omitempty"`
}

func (t *tickRow) view() tickView {
	v := tickView{Due: timeOf(t.Due), Outcome: t.Outcome, Reason: t.Reason, Executions: t.Started}
	if t.Count > 1 {
		until := timeOf(t.Until)
		v.Until, v.Count = &until, t.Count
	}
	return v
}

// tickDayView has the counts of a UTC day whose ticks are no longer kept one by one.
type tickDayView struct {
	Date    time.Time `json:"date"`
	Ran     int64     `json:"ran"`
	Late    int64     `json:"late"`
	Skipped int64     `json:"skipped"`
	Missed  int64     `json:"missed"`
}

// listTicks returns the ticks of a job that fell due in a range of time, newest first, with their outcomes, and the
// number of each outcome; due is the sum. Days of which only counts are kept are counted as a whole.
func (a *api) listTicks(r *apiCall) (*response, error) {
	end := r.query.time("end", time.Now())
	start := r.query.time("start", end.Add(-24*time.Hour))
	if start.After(end) {
		r.query.fail("end: must not be before start")
	}
	first, last := r.query.page()
	if r.query.err != nil {
		return nil, r.query.err
	}
	var list []tickRow
	var total int
	var sum tickCount
	var days []tickCount
	err := a.store.clients.atOnce(func(s *reader) error {
		row, err := s.job(r.PathValue("job"))
		if err != nil {
			return err
		}
		if list, total, err = s.ticks(row.version.ID, nanosOf(start), nanosOf(end), first, last); err != nil {
			return err
		}
		sum, days, err = s.tickCounts(row.version.ID, nanosOf(start), nanosOf(end))
		return err
	})
	older := each(days, func(d *tickCount) tickDayView {
		sum = tickCount{0, sum.Ran + d.Ran, sum.Late + d.Late, sum.Skipped + d.Skipped, sum.Missed + d.Missed}
		return tickDayView{timeOf(d.Day * nanosPerDay), d.Ran, d.Late, d.Skipped, d.Missed}
	})
	return &response{header: count(total), body: map[string]any{
		"due": sum.Ran + sum.Late + sum.Skipped + sum.Missed,
		"ran": sum.Ran, "late": sum.Late, "skipped": sum.Skipped, "missed": sum.Missed,
		"ticks": each(list, (*tickRow).view), "days": older,
	}}, err
}

// busy lists what runs, or with waiting the runs that wait for something to be free.
func (a *api) busy(r *apiCall) (*response, error) {
	limit := r.query.number("limit", math.MaxInt32, math.MaxInt32)
	switch {
	case r.query.err != nil:
		return nil, r.query.err
	case r.query.Has("waiting"):
		return a.waiting(r, limit)
	}
	list, err := a.store.clients.unfinishedExecutions()
	if err != nil {
		return nil, err
	}
	list = listable(r, list)
	rows := a.viewsOf(r, list[:min(limit, len(list))], r.query.outputMax(outputBytesMax))
	return &response{header: count(len(list)), rows: rows}, nil
}

// waitingView is a run that cannot start yet.
type waitingView struct {
	JobName     string    `json:"job_name"`
	Cause       string    `json:"cause"`
	ScheduledAt time.Time `json:"scheduled_at"`
	Group       int64     `json:"group,omitempty"`
	WaitsFor    string    `json:"waits_for"`
}

func (a *api) waiting(r *apiCall, limit int) (*response, error) {
	list, err := a.store.clients.waiting()
	views := []waitingView{}
	for _, w := range list {
		if r.caller.mayListRuns(w.job) {
			views = append(views, waitingView{w.job, w.cause, timeOf(w.due), w.group, w.waitsFor})
		}
	}
	return &response{header: count(len(views)), body: views[:min(limit, len(views))]}, err
}

// listable returns the executions that the caller may list, in the same slice.
func listable(r *apiCall, list []executionRow) []executionRow {
	return slices.DeleteFunc(list, func(e executionRow) bool { return !r.caller.mayListRuns(e.JobName) })
}

// viewsOf returns executions with outputs so far.
func (a *api) viewsOf(r *apiCall, list []executionRow, outputMax int) documents {
	a.addPrinted(r.Context(), list, outputMax)
	show := func(e executionRow) (json.RawMessage, error) { return json.Marshal(e.view(time.UTC)) }
	return shownAs(a.store.clients.withOutputs(list, outputMax), show)
}

func (a *api) showPause(*apiCall) (*response, error) {
	return object(map[string]bool{"paused": a.store.shown.Load().paused}, nil)
}

func (a *api) setPaused(paused bool) handler {
	return func(r *apiCall) (*response, error) {
		return object(map[string]bool{"paused": paused}, a.scheduler.setPaused(r.Context(), r.req, paused))
	}
}

func (a *api) rules(kind string) []rule { return a.store.shown.Load().list(kind) }

func (a *api) showHolds(*apiCall) (*response, error)     { return object(a.rules(ruleHold), nil) }
func (a *api) listCalendars(*apiCall) (*response, error) { return listed(a.rules(ruleCalendar), nil) }

func (a *api) showCalendar(r *apiCall) (*response, error) {
	days, ok := a.store.shown.Load().rules[ruleCalendar][r.PathValue("name")]
	if !ok {
		return nil, errNoRule
	}
	return object(days, nil)
}

// decodeRule reads a hold or a calendar as clients send it. Only a hold that is set needs a why.
func decodeRule(kind, name string, doc []byte, set bool) (r rule, err error) {
	if err := decodeBody(doc, &r); err != nil {
		return r, err
	}
	dates := r.Dates
	if len(r.Metadata) == 0 {
		r.Metadata = nil // the hold of all jobs has one name
	}
	switch r.Why = strings.TrimSpace(r.Why); {
	case kind == ruleCalendar && (r.Why != "" || r.Metadata != nil),
		kind == ruleHold && (dates != nil || r.Timezone != ""),
		r.By != "", !r.Since.IsZero(), r.Name != "" && r.Name != name:
		return r, errors.New("a hold has why and metadata, a calendar dates and timezone, and name is that in the path")
	case kind == ruleHold && set && (r.Why == "" || len(r.Why) > whyBytesMax):
		return r, fmt.Errorf("why: must have 1 to %d bytes; whoever finds nothing running reads it", whyBytesMax)
	case len(name) > nameBytesMax:
		return r, fmt.Errorf("name: must not be longer than %d bytes", nameBytesMax)
	case kind == ruleCalendar && len(dates) == 0:
		return r, errors.New("dates: must have a day, as in 2026-12-25")
	}
	for _, day := range dates {
		if _, err := time.Parse(time.DateOnly, day); err != nil {
			return r, fmt.Errorf("dates: %.40q is no day, write it as in 2026-12-25", day)
		}
	}
	if _, err := loadZone(cmp.Or(r.Timezone, "UTC")); err != nil {
		return r, fmt.Errorf("timezone: %w", err)
	}
	slices.Sort(dates)
	r.Dates, r.Name = slices.Compact(dates), name
	return r, nil
}

// setRule returns the handler that sets or removes a rule. A hold is named by its metadata, so a second one of the same
// jobs replaces the first. Ours.
func (a *api) setRule(action, kind string, set bool) handler {
	return func(r *apiCall) (*response, error) {
		patience, name := r.query.wait(), r.PathValue("name")
		if r.query.err != nil {
			return nil, r.query.err
		}
		sent := rule{Name: name}
		if kind != ruleDrain && (set || len(r.doc) > 0) {
			var err error
			if sent, err = decodeRule(kind, name, r.doc, set); err != nil {
				return nil, badRequest("the %s is invalid: %v", kind, err)
			}
		}
		called := func(m member) bool { return m.Name == name }
		switch {
		case kind == ruleHold:
			name = jsonText(sent.Metadata)
			sent.By = cmp.Or(r.caller.token.Name, r.req.Actor)
		case action == actionDrain && !slices.ContainsFunc(a.plane.members(), called):
			return nil, errNoRule
		}
		change := &sent
		if !set {
			change = nil
		}
		if err := a.scheduler.setRule(r.Context(), r.req, action, kind, name, change); err != nil {
			return nil, err
		}
		res := &response{body: a.rules(kind)}
		return a.await(r, res, patience, func() (bool, error) { return a.store.clients.runsOn(name) }, func() {}), nil
	}
}

// toggleAll enables or disables the jobs with the metadata in the query, all or none, and responds with the names of
// those that it changed. Ours.
func (a *api) toggleAll(disabled bool) handler {
	return func(r *apiCall) (*response, error) {
		metadata := r.query.metadata()
		if len(metadata) == 0 {
			r.query.fail("metadata[key]: say of which jobs, as in ?metadata[team]=web")
		}
		if r.query.err != nil {
			return nil, r.query.err
		}
		return listed(a.scheduler.toggleAll(r.Context(), r.req, metadata, disabled))
	}
}

// stats returns one entry per UTC day, today's last.
func (a *api) stats(r *apiCall) (*response, error) {
	days := r.query.number("days", statsDays, statsDaysMax)
	if r.query.err != nil {
		return nil, r.query.err
	}
	today := time.Now().UnixNano() / nanosPerDay
	list, err := a.store.clients.dailyStats(today-int64(days)+1, today)
	type day struct {
		Date    time.Time `json:"date"`
		Success int64     `json:"success_count"`
		Failed  int64     `json:"failed_count"`
	}
	return object(map[string]any{"stats": each(list, func(d *dayStats) day {
		return day{timeOf(d.Day * nanosPerDay), d.Success, d.Failed}
	})}, err)
}

func (a *api) listPolicies(*apiCall) (*response, error) { return listed(a.store.clients.policies()) }

func (a *api) showPolicy(r *apiCall) (*response, error) {
	return object(a.store.clients.policy(r.PathValue("name")))
}

func (a *api) putPolicy(r *apiCall) (*response, error) {
	p, err := decodePolicy(r.PathValue("name"), r.doc)
	if err == nil {
		err = p.checkPaths(a.paths())
	}
	if err != nil {
		return nil, badRequest("the policy is invalid: %v", err)
	}
	if _, fixed := builtInPolicy(p.Name); len(r.doc) == 0 && !fixed {
		old, err := a.store.clients.policy(p.Name)
		switch {
		case err == nil && old != p:
			const text = "the body is empty, so policy %q would grant nothing; send its Rules, " +
				`or {"Rules": "{}"} if you mean that`
			return nil, badRequest(text, p.Name)
		case err != nil && !errors.Is(err, errNoPolicy):
			return nil, err
		}
	}
	return &response{status: http.StatusAccepted, body: p}, a.scheduler.putPolicy(r.Context(), r.req, p)
}

func (a *api) deletePolicy(r *apiCall) (*response, error) {
	return object(a.scheduler.deletePolicy(r.Context(), r.req, r.PathValue("name")))
}

// auditView is a row of the audit trail as clients see it. Ours.
type auditView struct {
	Time      time.Time       `json:"time"`
	Action    string          `json:"action"`
	Actor     string          `json:"actor"`                // accessor of a token, "anonymous" or "bootstrap"
	ActorName string          `json:"actor_name,omitempty"` // of the token at that time
	Address   string          `json:"address"`
	JobName   string          `json:"job_name,omitempty"`
	Object    string          `json:"object,omitempty"`
	Before    json.RawMessage `json:"before"`
	After     json.RawMessage `json:"after"`
}

// listAudit returns who changed what, newest first, by default at any time.
func (a *api) listAudit(r *apiCall) (*response, error) {
	q := &r.query
	from, to := q.time("start", timeOf(0)), q.time("end", timeOf(math.MaxInt64))
	start, end := q.page()
	if q.err != nil {
		return nil, q.err
	}
	f := auditFilter{
		From: nanosOf(from), To: nanosOf(to), Job: q.Get("job"), Actor: q.Get("actor"), Action: q.Get("action"),
	}
	rows, total, older, err := a.store.clients.audit(f, start, min(end, start+auditPageMax))
	if err != nil {
		return nil, err
	}
	show := func(row auditRow) (json.RawMessage, error) {
		return plainJSON(auditView{
			Time: timeOf(row.At), Action: row.Action, Actor: row.Actor, ActorName: row.Name, Address: row.Address,
			JobName: row.Job, Object: row.Object, Before: rawJSON(row.Before), After: rawJSON(row.After),
		})
	}
	header := count(total)
	if older != 0 {
		header["Belfry-Older"] = timeOf(older).Format(time.RFC3339Nano)
	}
	return &response{header: header, rows: shownAs(rows, show)}, nil
}

// tokenView is a token as clients see it.
type tokenView struct {
	AccessorID     string
	SecretID       string `json:",omitempty"` // only when it is created
	Name           string
	Type           string
	Policies       []string
	CreateTime     time.Time
	ExpirationTime time.Time `json:",omitzero"`
}

func (t *token) view() tokenView {
	return tokenView{
		AccessorID: t.Accessor, Name: t.Name, Type: t.Type, Policies: append([]string{}, t.Policies...),
		CreateTime: timeOf(t.Created), ExpirationTime: endTime(t.Expires),
	}
}

// withACL serves requests only while access control is on.
func (a *api) withACL(next handler) handler {
	return func(r *apiCall) (*response, error) {
		if !a.acl {
			return nil, problem{http.StatusConflict, "access control is off; start the servers with --acl"}
		}
		return next(r)
	}
}

func (a *api) listTokens(*apiCall) (*response, error) {
	list, err := a.store.clients.tokens()
	return listed(each(list, (*token).view), err)
}

func (a *api) showToken(r *apiCall) (*response, error) {
	t, err := a.store.clients.token(r.PathValue("accessor"))
	return object(t.view(), err)
}

// createToken returns the new token with its secret, which is never shown again.
func (a *api) createToken(r *apiCall) (*response, error) {
	t, err := decodeToken(r.doc, time.Now().UnixNano())
	if err != nil {
		return nil, badRequest("the token is invalid: %v", err)
	}
	return a.makeToken(r, t, false)
}

// makeToken generates the accessor and the secret of a token and stores it. first: only while there is no management
// token.
func (a *api) makeToken(r *apiCall, t token, first bool) (*response, error) {
	secret, hash := newSecret()
	t.Accessor, t.Hash = crand.Text(), hash[:]
	err := a.scheduler.putToken(r.Context(), r.req, t, first)
	if errors.Is(err, errNoPolicy) {
		return nil, badRequest("the token is invalid: Policies: %v", err)
	}
	v := t.view()
	v.SecretID = secret
	return &response{status: http.StatusCreated, body: v}, err
}

func (a *api) deleteToken(r *apiCall) (*response, error) {
	t, err := a.scheduler.deleteToken(r.Context(), r.req, r.PathValue("accessor"))
	return object(t.view(), err)
}

// bootstrap creates the first management token; checkBootstrap has verified the secret.
func (a *api) bootstrap(r *apiCall) (*response, error) {
	t := token{Name: "bootstrap", Type: tokenManagement, Created: time.Now().UnixNano()}
	res, err := a.makeToken(r, t, true)
	if err == nil || errors.Is(err, errManaged) {
		if err := removeBootstrapSecret(a.dir); err != nil {
			a.log.Warn("the used bootstrap secret could not be removed", "err", err)
		}
	}
	return res, err
}

// self returns the caller's own token and what it grants. With path and capability in the query, it is 403 unless the
// token grants that.
func (a *api) self(r *apiCall) (*response, error) {
	c, q := r.caller, &r.query
	if path, capability := q.Get("path"), q.Get("capability"); path+capability != "" && !c.may(path, capability) {
		return nil, forbidden(path, capability)
	}
	return object(struct {
		tokenView
		Rules []policyRules // of its policies; none for a management token
	}{c.token.view(), append([]policyRules{}, c.rules...)}, nil)
}

// nextTicks returns the next times of a schedule in the query, which no job needs to have.
func (a *api) nextTicks(r *apiCall) (*response, error) {
	q := &r.query
	j := job{Name: q.Get("name"), Schedule: q.Get("schedule"), Timezone: q.Get("timezone")}
	zone := j.zone(a.scheduler.timezone())
	loc, err := loadZone(zone)
	if err != nil {
		return nil, badRequest("timezone: %v", err)
	}
	s, err := parseSchedule(j.Schedule, zone, j.Name)
	if err != nil {
		return nil, badRequest("schedule: %v", err)
	}
	from, n := q.time("from", time.Now()), q.number("count", 5, upcomingMax)
	if q.err != nil {
		return nil, q.err
	}
	loc = s.zone(loc)
	next := []time.Time{}
	for t := s.next(from); !t.IsZero() && len(next) < n; t = s.next(t) {
		local := t.In(loc)
		if local.Year() < 0 || nanosOf(t) == math.MaxInt64 {
			break // JSON cannot express it, or it is beyond the last time of a tick
		}
		next = append(next, local)
	}
	return object(map[string]any{"next": next, "timezone": loc.String(), "words": s.words(loc)}, nil)
}

// summary returns statistics of all jobs, and the last ticks that did not run, limited to jobs whose ticks the caller
// may list. Ours.
func (a *api) summary(r *apiCall) (*response, error) {
	sum, err := a.store.summary(time.Now())
	if err != nil {
		return nil, err
	}
	type unrun struct {
		Job string `json:"job_name"`
		tickView
	}
	ticks := sum.Unrun
	if globs := r.caller.rowGlobs("ticks", mayList); globs != nil {
		ticks, err = a.store.clients.unrun(globs)
	}
	return object(map[string]any{
		"jobs": map[string]int{
			"total": sum.Jobs, "success": sum.Good, "failed": sum.Failed, "partially_failed": sum.Partly,
			"untriggered": sum.Never, "disabled": sum.Disabled, "failing": sum.Failing,
		},
		"running": sum.Running,
		"start_delay": map[string]any{
			"ticks":     len(sum.Delays),
			"median_ms": delay(sum.Delays, 50), "p99_ms": delay(sum.Delays, 99), "max_ms": delay(sum.Delays, 100),
		},
		"today": map[string]int64{
			"success_count": sum.DayGood, "failed_count": sum.DayBad,
			"skipped": sum.DaySkipped, "missed": sum.DayMissed,
		},
		"notices": map[string]int64{
			"waiting":   int64(a.store.shown.Load().notices),
			"delivered": a.store.stats.told.Load(), "lost": a.store.stats.untold.Load(),
		},
		"unrun": each(ticks, func(t *unrunTick) unrun { return unrun{t.Job, t.view()} }),
	}, err)
}

// delay returns a percentile of sorted durations by nearest rank, in milliseconds.
func delay(sorted []time.Duration, percent int) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return float64(sorted[max(0, (len(sorted)*percent+99)/100-1)].Microseconds()) / 1000
}

// outcomes returns the last executions of the jobs in the query, newest first, by job; it omits jobs that the caller
// may not see. Ours.
func (a *api) outcomes(r *apiCall) (*response, error) {
	names := r.query.Values["job"]
	if len(names) > outcomeJobsMax {
		return nil, badRequest("job: may be given at most %d times", outcomeJobsMax)
	}
	names = slices.DeleteFunc(names, func(name string) bool { return !r.caller.mayListRuns(name) })
	rows, err := a.store.clients.lastExecutions(names, outcomesShown)
	type outcome struct {
		ID         string    `json:"id"`
		Outcome    string    `json:"outcome"`
		StartedAt  time.Time `json:"started_at"`
		FinishedAt time.Time `json:"finished_at"`
	}
	views := map[string][]outcome{}
	for name, list := range rows {
		views[name] = each(list, func(e *executionRow) outcome {
			v := e.view(time.UTC)
			return outcome{v.ID, v.Outcome, v.StartedAt, v.FinishedAt}
		})
	}
	return object(views, err)
}

// targets returns the nodes that match a job's tags now. If a tag has a count, a tick runs on only some of them. Ours.
func (a *api) targets(r *apiCall) (*response, error) {
	row, err := a.store.clients.job(r.PathValue("job"))
	if err != nil {
		return nil, err
	}
	names := []string{}
	for _, n := range matchingNodes(row.Tags, a.scheduler.moment().nodes) {
		names = append(names, n.Name)
	}
	return &response{body: names}, nil
}

// recentExecutions returns the executions of all jobs that started in a range of time, by default the last hour, newest
// first. Ours.
func (a *api) recentExecutions(r *apiCall) (*response, error) {
	q := &r.query
	start, end := q.past(time.Hour)
	f := executionFilter{
		from: nanosOf(start), to: nanosOf(end), outcome: q.Get("outcome"), job: q.Get("job"), node: q.Get("node"),
		owner: q.Get("owner"), globs: r.caller.rowGlobs("executions", mayList),
		limit: q.number("limit", recentMax, recentMax),
	}
	if known := append([]string{"", "bad"}, runOutcomes...); !slices.Contains(known, f.outcome) {
		q.fail("outcome: %q is not an outcome; use one of %s", f.outcome, strings.Join(known[1:], ", "))
	}
	if q.err != nil {
		return nil, q.err
	}
	list, err := a.store.clients.recentExecutions(f)
	if err != nil {
		return nil, err
	}
	return &response{rows: a.viewsOf(r, listable(r, list), min(q.outputMax(0), recentOutputMax))}, nil
}

// failureView is a job of which executions ended without success.
type failureView struct {
	JobName string        `json:"job_name"`
	Count   int64         `json:"count"`
	Since   time.Time     `json:"since"`
	Failing bool          `json:"failing"`
	Success time.Time     `json:"last_success"`
	Last    executionView `json:"last"`
}

// failures returns the jobs with executions that started in a range of time, by default the last day, and ended without
// success, with the last of each and the end of its output. Those that still fail come first. Ours.
func (a *api) failures(r *apiCall) (*response, error) {
	start, end := r.query.past(24 * time.Hour)
	limit, globs := r.query.number("limit", failingMax, failingMax), r.caller.rowGlobs("executions", mayList)
	if r.query.err != nil {
		return nil, r.query.err
	}
	jobs, err := a.store.clients.failingJobs(nanosOf(start), nanosOf(end), globs, limit)
	if err != nil {
		return nil, err
	}
	ids, last := each(jobs, func(j *failingJob) int64 { return j.last }), map[int64]executionRow{}
	rows, err := a.store.clients.collectExecutions(min(r.query.outputMax(recentOutputMax), recentOutputMax),
		"WHERE e.id IN (SELECT value FROM json_each(?2))", jsonText(ids))
	for _, e := range rows {
		last[e.ID] = e
	}
	list := []failureView{}
	for _, j := range jobs {
		if e, ok := last[j.last]; ok && r.caller.mayListRuns(j.name) {
			list = append(list, failureView{
				j.name, j.count, timeOf(j.since), j.failing, endTime(j.success), e.view(time.UTC),
			})
		}
	}
	return object(list, err)
}

// laneView is what a timeline shows of a job.
type laneView struct {
	JobName string       `json:"job_name"`
	Runs    []markView   `json:"runs"`
	Due     []comingMark `json:"due"`
}

// markView counts executions that started in the same part of an hour.
type markView struct {
	From    time.Time `json:"from"`
	To      time.Time `json:"to"` // the year 1 while one of them runs
	Count   int64     `json:"count"`
	Failed  int64     `json:"failed,omitempty"`
	Killed  int64     `json:"killed,omitempty"`
	Running int64     `json:"running,omitempty"`
}

// timeline returns what ran in the last hour and what falls due in the next, counted in parts of these hours: of the
// jobs that failed most, then of those that ran most, then of those that fall due first. Ours.
func (a *api) timeline(r *apiCall) (*response, error) {
	c, now := r.caller, time.Now()
	limit, parts := r.query.number("limit", lanesMax, lanesMax), r.query.number("parts", partsMax, partsMax)
	if r.query.err != nil {
		return nil, r.query.err
	}
	start, end, width := now.Add(-time.Hour), now.Add(time.Hour), time.Hour/time.Duration(parts)
	ran := c.rowGlobs("executions", mayList)
	marks, total, err := a.store.clients.lanes(nanosOf(start), nanosOf(now), int64(width), ran, limit)
	if err != nil {
		return nil, err
	}
	lanes, names := []*laneView{}, []string{}
	lane := func(name string) *laneView {
		i := slices.Index(names, name)
		if i < 0 {
			i = len(names)
			names, lanes = append(names, name), append(lanes, &laneView{name, []markView{}, []comingMark{}})
		}
		return lanes[i]
	}
	for _, m := range marks {
		l := lane(m.job)
		l.Runs = append(l.Runs, markView{timeOf(m.from), endTime(m.to), m.count, m.failed, m.killed, m.running})
	}
	add := func(name string, due []comingMark) {
		if c.may(jobPath(name), mayRead) && (len(names) < limit || slices.Contains(names, name)) {
			lane(name).Due = due
		}
	}
	if err := a.scheduler.comingMarks(end, width, slices.Clone(names), limit, add); err != nil {
		return nil, err
	}
	globs := c.rowGlobs("", mayRead)
	if len(names) < limit {
		err = a.scheduler.comingMarks(end, width, globs, limit, add)
	}
	due, err2 := a.store.clients.dueCount(nanosOf(end), globs)
	return object(map[string]any{
		"start": start.UTC(), "now": now.UTC(), "end": end.UTC(), "known_from": timeOf(total.since), "rows": lanes,
		"runs": total.runs, "failed": total.failed, "jobs": total.jobs, "jobs_due": due,
	}, errors.Join(err, err2))
}

// upcoming returns the ticks that fall due in a range of time, by default the next hour, earliest first, with
// Belfry-More if there are others. Ours.
func (a *api) upcoming(r *apiCall) (*response, error) {
	start := r.query.time("start", time.Now())
	end, limit := r.query.time("end", start.Add(time.Hour)), r.query.number("limit", comingMax, comingMax)
	if r.query.err != nil {
		return nil, r.query.err
	}
	list, more, err := a.scheduler.coming(start, end, r.caller.rowGlobs("", mayRead), limit)
	header := map[string]string{}
	if more {
		header["Belfry-More"] = "true"
	}
	return &response{header: header, body: list}, err
}

// watch sends the events that the caller may see, one per line, until the client disconnects or the node stops. Ours.
func (a *api) watch(r *apiCall) (*response, error) {
	limit := r.query.number("limit", eventsMax, eventsMax)
	if r.query.err != nil {
		return nil, r.query.err
	}
	return &response{serve: func(w http.ResponseWriter) error {
		next, ok := a.store.events.enter()
		if !ok {
			const text = "%d clients are watching this server already; use another server, or poll"
			return problem{http.StatusServiceUnavailable, fmt.Sprintf(text, watchersMax)}
		}
		defer a.store.events.leave()
		out := streamTo(w)
		out.live = true
		_ = out.control.SetReadDeadline(time.Time{}) // it may go on for days
		w.Header().Set("Content-Type", "application/x-ndjson")
		w.Header().Set("X-Accel-Buffering", "no") // or nginx would buffer the lines
		v := &watcher{api: a, out: out, most: limit}
		v.setCaller(r.caller)
		if err := v.follow(r, next); err != nil {
			a.log.Error("an event stream was closed", "err", err)
		}
		return nil
	}}, nil
}

// A watcher is a client of GET /v1/events.
type watcher struct {
	api     *api
	caller  *caller
	globs   []string  // of the jobs that it may see
	out     io.Writer // flushes, and fails if the client does not read in time
	leader  string    // as last sent
	members string    // as last sent
	most    int       // events that it is sent at once; more become one eventReload
}

// setCaller sets the caller with its present rights.
func (v *watcher) setCaller(c *caller) { v.caller, v.globs = c, c.jobGlobs() }

// follow sends the events from window next on. It returns errors of the store only.
func (v *watcher) follow(r *apiCall, next uint64) error {
	v.poll()
	list := []event{{Type: eventHello, Node: v.api.node, Leader: &v.leader}}
	ticker := time.NewTicker(pollTime)
	defer ticker.Stop()
	for polls := 1; ; {
		windows, end, more := v.api.store.events.since(next)
		next = end
		news, err := v.news(windows)
		if err != nil {
			return err
		}
		if v.send(append(list, news...)) != nil {
			return nil // the client has gone
		}
		list = nil
		if len(news) > 0 && news[0].Type == eventReload {
			more = nil // give the client time to read everything
		}
		select {
		case <-r.Context().Done():
			return nil
		case <-v.api.stopping:
			return nil
		case <-more:
			continue
		case <-ticker.C:
		}
		if polls%admitPolls == 0 && v.api.acl {
			c, err := v.api.admit(route{pattern: watchRoute, capability: mayListJobs}, r.Request)
			if err != nil {
				return nil // the client learns why when it reconnects
			}
			v.setCaller(c)
		}
		if list = v.poll(); polls%alivePolls == 0 {
			list = append(list, event{Type: eventAlive})
		}
		polls++
	}
}

// news returns the events in windows that the watcher may see.
func (v *watcher) news(windows []*window) ([]event, error) {
	var list []event
	for _, w := range windows {
		if w.full {
			return []event{{Type: eventReload}}, nil
		}
		events, err := w.read(v.api.store.eventsOf)
		if err != nil {
			return nil, err
		}
		for _, e := range events {
			if e, ok := v.shown(e); ok {
				list = append(list, e)
			}
		}
	}
	if len(list) > v.most {
		list = []event{{Type: eventReload}}
	}
	return list, nil
}

// shown returns an event as the watcher may see it, false if not at all. A caller that may not list executions sees
// only that the job has changed.
func (v *watcher) shown(e event) (event, bool) {
	switch e.Type {
	case eventPaused:
		return e, v.caller.may("/v1/pause", mayRead)
	case eventStarted, eventEnded:
		if v.caller.mayListRuns(e.Job) {
			return e, true
		}
		e = event{Type: eventJob, Job: e.Job}
	}
	return e, slices.ContainsFunc(v.globs, func(glob string) bool { return matchSegment(glob, e.Job) })
}

// poll returns events for changes of the leader and the members since the last call.
func (v *watcher) poll() (list []event) {
	leader, members := "", ""
	if m, ok := v.api.plane.leader(); ok && v.caller.may("/v1/leader", mayRead) {
		leader = m.Name
	}
	if v.caller.may("/v1/members", mayList) {
		members = fmt.Sprint(v.api.plane.members())
	}
	if leader != v.leader {
		list = append(list, event{Type: eventLeader, Leader: &leader})
	}
	if members != v.members {
		list = append(list, event{Type: eventMembers})
	}
	v.leader, v.members = leader, members
	return list
}

// send writes events, one per line.
func (v *watcher) send(list []event) (err error) {
	lines := ""
	for _, e := range list {
		lines += jsonText(e) + "\n"
	}
	if lines != "" {
		_, err = io.WriteString(v.out, lines)
	}
	return err
}

// A member is a node in the form of Serf, which Dkron uses. The protocol numbers mean nothing here.
type member struct {
	Name        string
	Addr        string
	Port        int
	Tags        map[string]string
	Status      int // 1 alive, 2 leaving, 3 left, 4 failed
	ProtocolMin int
	ProtocolMax int
	ProtocolCur int
	DelegateMin int
	DelegateMax int
	DelegateCur int
}

// members returns all nodes as the API shows them.
func (p *plane) members() []member { return each(p.all(), (*contact).member) }

func (r *record) member() member {
	host, port, _ := net.SplitHostPort(r.Addr)
	n, _ := strconv.Atoi(port) // 0 if a node says nonsense of itself
	return member{Name: r.Name, Addr: host, Port: n, Tags: r.Tags, Status: r.Status}
}

// leader returns the server that leads, as far as this node knows.
func (p *plane) leader() (member, bool) {
	r, ok := p.leaderRecord()
	r.Status = memberAlive
	return r.member(), ok
}

// raftPeer is a server as "belfry raft list-peers" shows it.
type raftPeer struct {
	ID      string `json:"id"`
	Node    string `json:"node"`
	Address string `json:"address"` // "": unknown
	Leader  bool   `json:"leader"`
	Voter   bool   `json:"voter"` // false: it is being taken in, or has left
}

// peers returns the voters and the servers that want to be voters, in order of names.
func (p *plane) peers() []raftPeer {
	st, peers := p.server.status(), map[string]raftPeer{}
	for _, v := range st.Voters {
		peers[v.ID] = raftPeer{ID: v.ID, Node: v.Name, Leader: v == st.Leader, Voter: true}
	}
	for _, c := range p.all() {
		if peer := peers[c.ID]; c.Server {
			peer.ID, peer.Node, peer.Address = c.ID, cmp.Or(peer.Node, c.Name), c.Addr
			peers[c.ID] = peer
		}
	}
	return slices.SortedFunc(maps.Values(peers), func(a, b raftPeer) int {
		return compareServers(server{a.Node, a.ID}, server{b.Node, b.ID})
	})
}

// memberView is a member in the list of members.
type memberView struct {
	member
	Drained    bool   `json:"drained,omitempty"` // ours
	ID         string `json:"id"`
	StatusText string `json:"statusText"`
}

func (a *api) listMembers(*apiCall) (*response, error) {
	rules := a.store.shown.Load().rules
	return listed(each(a.plane.members(), func(m *member) memberView {
		_, drained := rules[ruleDrain][m.Name]
		return memberView{*m, drained, m.Name, memberStatus[m.Status]}
	}), nil)
}

// leaveCluster takes this node out of its cluster and stops it; it returns the members as they were, which an agent
// does not know. The client gets the response, because the node drains its requests first. Without a leader, the node
// leaves unrecorded, unless only the leader could say whether the caller may make it leave. A request from another node
// says that that node leaves; it is only recorded.
func (a *api) leaveCluster(r *apiCall) (*response, error) {
	if _, ok := forwardedFrom(r.Context()); ok {
		return object(struct{}{}, a.note(r, actionLeave, r.query.Get("node")))
	}
	if err := a.drainFirst(r); err != nil {
		return nil, err
	}
	a.log.Info("leaving the cluster, on request", "from", r.RemoteAddr)
	res := &response{serve: func(http.ResponseWriter) error { return nil }}
	if a.store != nil {
		res, _ = a.listMembers(r)
	}
	var err error
	if a.plane.leading() {
		err = a.note(r, actionLeave, a.node)
	} else {
		ctx, cancel := context.WithTimeout(r.Context(), leaderTimeout)
		defer cancel()
		_, err = a.askLeader(ctx, r, "/v1/leave", "?"+url.Values{"node": {a.node}}.Encode())
	}
	switch {
	case err != nil && a.store == nil && a.acl:
		return nil, err
	case err != nil:
		a.log.Warn("the audit trail does not contain the request for this node to leave",
			"actor", r.req.Actor, "address", r.req.Address, "err", err)
	}
	if err := a.plane.leave(r.Context()); err != nil {
		return nil, problem{http.StatusServiceUnavailable, err.Error()}
	}
	a.quit()
	return res, nil
}

// note adds to the audit trail what was done to a node.
func (a *api) note(r *apiCall, action, node string) error {
	return a.scheduler.note(r.Context(), r.req, audited{Action: action, Object: node})
}

// drainFirst drains this node if a request to leave says so, and returns when nothing runs on it any more.
func (a *api) drainFirst(r *apiCall) (err error) {
	drain := *r
	drain.req.ID = "drain of " + r.req.ID
	_ = r.control.SetReadDeadline(time.Time{}) // it would end the context
	for status := 0; err == nil && r.query.Has("drain") && status != http.StatusOK; {
		status, err = a.askLeader(r.Context(), &drain, "/v1/members/"+url.PathEscape(a.node)+"/drain", "?wait=30s")
	}
	return err
}

// askLeader has the leader, which may be this node, serve a POST in the name of the caller of r. It returns
// errUnauthenticated, or a problem with status 403, if the caller may not make it.
func (a *api) askLeader(ctx context.Context, r *apiCall, path, query string) (status int, err error) {
	to := a.plane.towardsLeader()
	if leader, ok := a.plane.leaderRecord(); ok {
		to = []record{leader}
	}
	if len(to) == 0 {
		return 0, errUnreachable
	}
	call, err := a.plane.request(ctx, http.MethodPost, to[0], "/api"+path+query, http.NoBody)
	if err != nil {
		return 0, err
	}
	for _, name := range []string{"X-Dkron-Token", "Authorization"} {
		call.Header[name] = r.Header[name]
	}
	signFor(call.Header, r.Request, r.req.Actor, r.req.ID)
	resp, err := a.plane.calls.Do(call)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errUnreachable, err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK, http.StatusAccepted:
		return resp.StatusCode, nil
	case http.StatusForbidden:
		return 0, forbidden(path, mayCreate)
	case http.StatusUnauthorized:
		return 0, errUnauthenticated
	}
	return 0, problem{http.StatusServiceUnavailable, "no server can do this now; try again later"}
}

// backup sends a snapshot of this server's state: a database file from which "belfry agent" starts, as a new cluster.
// There is one at a time, because each takes the disk space of the whole state while its client reads. Ours.
func (a *api) backup(r *apiCall) (*response, error) {
	if !a.copying.CompareAndSwap(false, true) {
		return nil, problem{http.StatusServiceUnavailable, "another backup is in progress; try again later"}
	}
	file, _, err := a.store.snapshotFile(r.Context())
	if err != nil {
		a.copying.Store(false)
		return nil, err
	}
	return &response{serve: func(w http.ResponseWriter) error {
		defer a.copying.Store(false)
		defer file.Close()
		streamTo(w).live = true
		w.Header().Set("Content-Disposition", `attachment; filename="belfry.db"`)
		w.Header().Set("Content-Type", "application/vnd.sqlite3")
		http.ServeContent(w, r.Request, "", time.Time{}, file)
		return nil
	}}, nil
}

// listPeers returns the voters and the learners. Ours.
func (a *api) listPeers(*apiCall) (*response, error) { return object(a.plane.peers(), nil) }

// dropPeer removes a dead server from the voters. Ours.
func (a *api) dropPeer(r *apiCall) (*response, error) {
	id := r.PathValue("id")
	if _, err := a.plane.removePeer(r.Context(), id); err != nil {
		return nil, err
	}
	return object(struct{}{}, a.note(r, actionRemovePeer, id))
}

// relayHandler serves HTTP on an agent, a node without state. It forwards requests to a server, which checks the token,
// but responds itself that it is not the leader and whether it is healthy.
func (a *api) relayHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if !a.acl {
			connAdmitted(r)
		}
		err := a.forward(w, r, actorAnonymous, newRequestID())
		if errors.Is(err, errNotLeader) {
			a.log.Debug("a request could not be forwarded to a server", "err", err)
			err = errUnreachable
		}
		if err != nil {
			a.fail(w, r, err)
		}
	})
	for _, route := range a.routes() {
		if slices.Contains([]string{leaveRoute, healthRoute, isLeaderRoute}, route.pattern) {
			mux.Handle(route.pattern, a.limited(route.bodyMax(), a.handlerFor(route)))
		}
	}
	return a.guard(mux)
}

// errUnreachable is the response of an agent that can reach no server.
var errUnreachable = problem{http.StatusServiceUnavailable, "no server can be reached; see --retry-join"}

func (a *api) showLeader(r *apiCall) (*response, error) {
	m, ok := a.plane.leader()
	if !ok {
		return nil, errNotLeader
	}
	return &response{body: m}, nil
}

func (a *api) isLeader(*apiCall) (*response, error) {
	if !a.plane.leading() {
		return &response{status: http.StatusNotFound, body: "I am a follower"}, nil
	}
	return object("I am a leader", nil)
}

// showHealth is 200 if reads and writes work on this node, even if there are warnings, and otherwise 503. With live it
// is 200 whenever the process responds: a supervisor that restarted a node for want of a majority would only do harm.
// With leader it is 200 on the leader only.
func (a *api) showHealth(r *apiCall) (*response, error) {
	status := func(ok bool, yes, no string) *response {
		if ok {
			return &response{body: map[string]any{"status": yes}}
		}
		return &response{status: http.StatusServiceUnavailable, body: map[string]any{"status": no}}
	}
	switch {
	case r.query.Has("live"):
		return status(true, "alive", ""), nil
	case r.query.Has("leader"):
		return status(a.plane.leading(), "leader", "follower"), nil
	}
	problems, warnings := a.plane.health()
	res := status(len(problems) == 0, "healthy", "unhealthy")
	if !a.ownHost(r.Host) || !r.caller.may("/health", mayRead) {
		return res, nil
	}
	body := res.body.(map[string]any)
	for name, list := range map[string][]string{"problems": problems, "warnings": warnings} {
		if len(list) > 0 {
			body[name] = list
		}
	}
	if r.query.Has("verbose") && a.store != nil {
		body["held"] = a.rules(ruleHold)
	}
	return res, nil
}

// metricsText returns all metrics in Prometheus' text format, those of jobs for the jobs that globs match, nil: any.
func (a *api) metricsText(globs []string) (string, error) {
	g := a.plane.gauges()
	g.Version, g.Leading, g.Requests = version, a.plane.leading(), &a.refusals
	g.Lag = a.scheduler.lag(time.Now())
	var text strings.Builder
	var err1, err2 error
	g.Jobs, err1 = a.store.clients.countJobs()
	g.Shown, err2 = a.store.clients.jobNumbers(globs, a.metricsJobs)
	a.store.stats.write(&text, g)
	return text.String(), cmp.Or(err1, err2)
}

func (a *api) metrics(r *apiCall) (*response, error) {
	doc, err := a.metricsText(r.caller.rowGlobs("", mayRead))
	return text("text/plain; version=0.0.4; charset=utf-8", []byte(doc)), err
}

// debugVars returns what package expvar does, but for the command line, which may hold secrets, and the metrics.
func (a *api) debugVars(r *apiCall) (*response, error) {
	text, err := a.metricsText(r.caller.rowGlobs("", mayRead))
	values := map[string]json.Number{}
	for name, value := range samplesOf(text) {
		values[name] = json.Number(value)
	}
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	return object(map[string]any{"cmdline": os.Args[:1], "memstats": mem, "belfry": values}, err)
}

// openapi returns the contract of this API.
func (a *api) openapi(*apiCall) (*response, error) {
	doc, err := web.ReadFile("web/openapi.yaml")
	return text("application/yaml; charset=utf-8", doc), err
}

func (a *api) status(*apiCall) (*response, error) {
	members, count := a.plane.members(), map[string]int{}
	for _, m := range members {
		count[memberStatus[m.Status]]++
	}
	return object(map[string]any{
		"agent": map[string]string{"name": a.node, "version": version},
		"serf": map[string]string{"members": strconv.Itoa(len(members)), "failed": strconv.Itoa(count["failed"]),
			"left": strconv.Itoa(count["left"]), "encrypted": "true"},
		"tags": a.plane.own().Tags,
		"held": a.rules(ruleHold),
	}, nil)
}

// serveUntil serves until ctx is done, and then gives the present requests a second to finish.
func serveUntil(ctx context.Context, web *http.Server, listener net.Listener) error {
	web.ConnState, web.ConnContext = noteConnState, withConn
	ended := make(chan error, 1)
	go func() { ended <- web.Serve(listener) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if web.Shutdown(drain) != nil {
		web.Close()
	}
	<-ended // always http.ErrServerClosed
	return nil
}

// noteConnState implements http.Server.ConnState.
func noteConnState(conn net.Conn, state http.ConnState) {
	c, ok := bounded(conn)
	switch {
	case !ok:
	case state == http.StateActive:
		c.enter(connWaiting) // for the rest of the header
	case state == http.StateIdle:
		c.enter(connIdle)
	}
}

func bounded(conn net.Conn) (*boundedConn, bool) {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	c, ok := conn.(*boundedConn)
	return c, ok
}

type connKey struct{}

func withConn(ctx context.Context, conn net.Conn) context.Context {
	c, _ := bounded(conn)
	return context.WithValue(ctx, connKey{}, c)
}

// connAdmitted raises the rank of a request's connection after its admission. A request with a body reaches connWriting
// only when the body is complete: otherwise a few clients that withhold it would keep everybody out.
func connAdmitted(r *http.Request) {
	c, _ := r.Context().Value(connKey{}).(*boundedConn)
	switch {
	case c == nil:
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
		c.enter(connReading)
	case r.ContentLength == 0:
		c.enter(connWriting)
	default:
		c.enter(connReading)
		r.Body = &upload{r.Body, c}
	}
}

// upload is the body of an admitted request.
type upload struct {
	io.ReadCloser
	conn *boundedConn
}

func (u *upload) Read(p []byte) (int, error) {
	n, err := u.ReadCloser.Read(p)
	if err == io.EOF {
		u.conn.enter(connWriting)
	}
	return n, err
}
