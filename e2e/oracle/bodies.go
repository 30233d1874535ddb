// Bodies as JSON values, whatever they were encoded in, so that encodings are compared by what they say.

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

const protobufType = "application/vnd.kubernetes.protobuf"

var protobufCodec = func() *protobuf.Serializer {
	// PartialObjectMetadata and its list are of no client's scheme.
	_ = metav1.AddMetaToScheme(scheme.Scheme)
	return protobuf.NewSerializer(scheme.Scheme, scheme.Scheme)
}()

// decode turns an answer's body into a JSON value; what it cannot read it returns as text or as a note of its kind.
func decode(header http.Header, content []byte) any {
	if len(content) == 0 {
		return nil
	}
	kind, _, _ := mime.ParseMediaType(header.Get("Content-Type"))
	var value any
	switch kind {
	case "application/json", "application/apply-patch+yaml":
		if json.Unmarshal(content, &value) == nil {
			return value
		}
	case "application/yaml":
		if yaml.Unmarshal(content, &value) == nil {
			return value
		}
	case protobufType:
		return decodeProtobuf(content)
	}
	// Some documents are JSON and do not say so.
	if content[0] == '{' && json.Unmarshal(content, &value) == nil {
		return value
	}
	if !utf8.Valid(content) {
		return fmt.Sprintf("<binary, %s>", kind)
	}
	return string(content)
}

func decodeProtobuf(content []byte) any {
	object, _, err := protobufCodec.Decode(content, nil, nil)
	if err != nil {
		return fmt.Sprintf("<protobuf that cannot be decoded: %v>", err)
	}
	text, err := json.Marshal(object)
	if err != nil {
		return fmt.Sprintf("<%v>", err)
	}
	var value any
	_ = json.Unmarshal(text, &value)
	return value
}

// encodeProtobuf makes the protobuf form of a built-in object that is given as JSON.
func encodeProtobuf(text []byte) ([]byte, error) {
	codecs := serializer.NewCodecFactory(scheme.Scheme)
	object, err := runtime.Decode(codecs.UniversalDeserializer(), text)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = protobufCodec.Encode(object, &out)
	return out.Bytes(), err
}
